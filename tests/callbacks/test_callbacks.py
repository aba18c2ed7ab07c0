"""The metrics file after a resume, and the smoothing of the curve."""

import json
import resource
import signal
from types import SimpleNamespace

import pytest

from lrsa_lightning.callbacks import ResumedHistory
from lrsa_lightning.callbacks.metrics_file import MetricsFile
from lrsa_lightning.metrics import points, read_rows, smooth


def test_metrics_are_appended_and_read_back(tmp_path):
    logger = MetricsFile(str(tmp_path / "run"))
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"other": 1.0}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    with logger.path.open("a") as file:
        file.write('{"step": 3, "train')  # killed while writing
    assert points(read_rows(logger.path), "train/loss") == ([1, 2], [2.0, 1.0])


# What an earlier version wrote: the check before training, the first step with a validation, the second with a check.
EARLIER = (
    '{"step": 0, "ruler/a": 0.0}\n{"step": 0, "epoch": 0.0, "train/loss": 3.0}\n{"step": 0, "val/loss": 9.0}\n'
    '{"step": 1, "ruler/a": 5.0}\n{"step": 1, "train/loss": 2.0}\n'
)


def test_a_file_of_an_earlier_version_is_read_in_steps_done(tmp_path):
    """By hand: its first step was 0, and the scores after step n stood at n - 1."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(EARLIER)
    rows = read_rows(path)
    assert points(rows, "train/loss") == ([1, 2], [3.0, 2.0])
    assert points(rows, "val/loss") == ([1], [9.0])
    assert points(rows, "ruler/a") == ([0, 2], [0.0, 5.0])
    path.write_text(EARLIER.replace('{"step": 1, "ruler', '{"step": 0, "ruler'))  # a check after each step
    assert points(read_rows(path), "ruler/a") == ([0, 1], [0.0, 5.0])


def test_a_resume_of_an_earlier_versions_run_counts_on(tmp_path):
    """The file has one way of counting, whether the run is resumed or validated."""
    for step, kept in ((1, [0, 1, 1]), (2, [0, 1, 1, 2, 2]), ("validate", [0, 1, 1, 2, 2])):
        logger = MetricsFile(str(tmp_path))
        logger.path.write_text(EARLIER)
        assert [row["step"] for row in logger.rows()] == [0, 1, 1, 2, 2]
        if step != "validate":
            logger.forget_after(step)
        for further in (3, 4):
            logger.log_metrics({"train/loss": 1.0}, step=further)
        assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [*kept, 3, 4]


def test_steps_after_the_resumed_one_are_removed(tmp_path):
    logger = MetricsFile(str(tmp_path))
    for step in range(1, 6):
        logger.log_metrics({"train/loss": step}, step=step)
    logger.forget_after(3)
    assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [1, 2, 3]


def test_half_a_line_of_a_killed_run_does_not_spoil_the_next_one(tmp_path):
    logger = MetricsFile(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, step=1)
    with logger.path.open("a") as file:
        file.write('{"step": 2, "train')
    logger.forget_after(1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    assert points(read_rows(logger.path), "train/loss") == ([1, 2], [2.0, 1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("resumes", [False, True])
def test_a_resume_drops_nothing_before_it_knows_its_step(tmp_path, resumes):
    """DeepSpeed reads a checkpoint after the fit has started: only a run without one begins with an empty file."""
    logger = MetricsFile(str(tmp_path))
    for step in range(1, 5):
        logger.log_metrics({"train/loss": step}, step=step)
    trainer = SimpleNamespace(loggers=[logger], state=SimpleNamespace(fn="fit"))
    history = ResumedHistory(resumes)
    history.setup(trainer, None, "fit")
    assert len(logger.rows()) == (4 if resumes else 0)
    history.on_load_checkpoint(trainer, None, {"global_step": 2})
    assert [row["step"] for row in logger.rows()] == ([1, 2] if resumes else [])


def test_removed_rows_move_to_a_file_of_their_own(tmp_path):
    logger = MetricsFile(str(tmp_path))
    for step in range(1, 5):
        logger.log_metrics({"train/loss": step}, step=step)
    before = logger.path.read_text().splitlines(keepends=True)
    logger.forget_after(3)
    logger.forget_after(3)
    logger.forget_after(None)
    assert logger.path.read_text() == ""
    assert (tmp_path / "metrics-1.jsonl").read_text() == before[3]
    assert (tmp_path / "metrics-2.jsonl").read_text() == "".join(before[:3])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_line_moves_there_too(tmp_path):
    logger = MetricsFile(str(tmp_path))
    logger.path.write_text('{"step": 0, "a": 1.0}\nno row\n{"step": 1, "a": 2.0}\n')
    assert [row["step"] for row in logger.rows()] == [0, 1]
    logger.forget_after(2)
    assert (tmp_path / "metrics-1.jsonl").read_text() == "no row\n"
    assert [row["step"] for row in logger.rows()] == [0, 1]


def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path, caplog):
    """Writes to /dev/full fail; later a file replaces it."""
    logger = MetricsFile(str(tmp_path))
    logger.path.symlink_to("/dev/full")
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": step}, step=step)
    assert [row["step"] for row in logger.rows()] == [1, 2, 3]
    logger.finalize("success")
    assert [record.getMessage() for record in caplog.records] == [
        f"{logger.path}: not written ([Errno 28] No space left on device); training goes on",
        f"{logger.path} lacks the last 3 rows",
        f"{logger.path}: 3 writes failed",
    ]
    logger.path.unlink()
    logger.log_metrics({"train/loss": 4}, step=4)
    assert points(read_rows(logger.path), "train/loss") == ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])


def test_half_a_row_on_a_full_disk_spoils_no_other_row(tmp_path, monkeypatch):
    logger = MetricsFile(str(tmp_path))
    logger.log_metrics({"a": 0}, step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (logger.path.stat().st_size + 5, resource.RLIM_INFINITY))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        logger.log_metrics({"a": 1}, step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, ignored)
    assert logger.path.read_text().count("\n") == 1
    assert logger.path.read_text().endswith("\n")
    logger.log_metrics({"a": 2}, step=2)
    assert points(read_rows(logger.path), "a") == ([0, 1, 2], [0.0, 1.0, 2.0])


def test_smoothing_has_no_bias_at_the_start():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([1.0, 2.0], 0.5)[1] == pytest.approx((0.5 * 1 + 1 * 2) / 1.5)


def test_smoothing_ignores_values_that_are_not_finite():
    nan = float("nan")
    assert smooth([3.0, nan, 3.0, float("inf")], 0.9) == pytest.approx([3.0] * 4)
    assert smooth([nan, 3.0], 0.9)[1] == pytest.approx(3.0)
