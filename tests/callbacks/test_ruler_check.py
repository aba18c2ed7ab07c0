"""The time of RULER checks: bounded, announced, and fair to what is compared. The clock is moved on by hand."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.ruler import scorer
from lrsa_lightning.ruler.check_time import FIRST_SECONDS, CheckTime
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.ruler.scorer import BatchScorer
from lrsa_lightning.ruler.summary import left_out
from lrsa_lightning.ruler.tasks import find_task
from tests.runs import callback, checkpoints, command, losses


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for name in ("ruler.time_limit", "ruler.progress", "ruler.evaluator", "ruler.check_time"):
        monkeypatch.setattr(f"lrsa_lightning.{name}.monotonic", clock)
    return clock


@pytest.fixture
def slow_batches(clock, monkeypatch, caplog):
    """Answers of four tokens; each batch takes three seconds. The start of each, after the log has announced it."""
    monkeypatch.setattr(scorer, "find_task", lambda name: replace(find_task(name), tokens_to_generate=4))
    original, batches = BatchScorer.score, []

    def score(*args):
        assert "s at most" in caplog.text or "no time limit" in caplog.text
        batches.append(clock.now)
        clock.now += 3
        return original(*args)

    monkeypatch.setattr(BatchScorer, "score", score)
    return batches


def fit(arguments, max_steps: int = 1, more=(), subcommand: str = "fit", **options) -> None:
    arguments |= {"data.seq_len": "1024", "trainer.max_steps": str(max_steps)}
    arguments["trainer.callbacks"] = json.dumps([callback("RulerEval", **options), *more])
    main(command(arguments, subcommand))


def records(step: int) -> list:
    return read_records(Path(f"runs/x/ruler/step-{step:06d}.jsonl"))


@pytest.mark.usefixtures("in_tmp_path")
def test_the_first_check_of_a_default_fit_is_bounded_and_announced(arguments, slow_batches, clock, caplog, capsys):
    """Four tasks of eight samples at one length under three budgets, in groups of three batches. Three groups fit."""
    fit(arguments, generation="always")
    first, last = slow_batches[:9], slow_batches[9:]
    assert first == [3.0 * i for i in range(9)]  # not a fourth group: it would take 9 s, and 8 s are left
    assert len(last) == 9
    lines = [record.message for record in caplog.records if record.message.startswith("RULER check")]
    what = "96 answers (tasks: 4, lengths: 1024, budgets: r1, r0.5, r0.25)"
    assert lines[:5] == [
        f"RULER check: {what}, 35 s at most (RulerEval.max_seconds)",
        "RULER check: all samples would take about 36 s",
        "RULER check: 4 of 12 batches done (1024/r1), 0:00:23 left",
        "RULER check: 8 of 12 batches done (1024/r0.5), 0:00:11 left",
        lines[0],
    ]
    tasks = ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "fwe"]
    cells = ", ".join(f"{task}/1024" for task in tasks)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"left out after 35 s (max_seconds): 24 of 96; scored 6 of 8 samples of {cells}" in said
    assert Counter(record.cell for record in records(0)) == {
        (task, 1024, budget): 6 for task in tasks for budget in ("r1", "r0.5", "r0.25")
    }
    assert [(r.id, r.budget) for r in records(0)] == [(r.id, r.budget) for r in records(1)]
    assert len(losses()) == 1


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize(("max_seconds", "number"), [(None, 12), (7.0, 3), (10.0, 3), (20.0, 6)])
def test_an_explicit_time_or_null_overrides_the_default(arguments, slow_batches, max_seconds, number):
    fit(arguments, max_seconds=max_seconds, every_n_steps=5)
    assert len(slow_batches) == 2 * number


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_model_that_is_only_scored_is_scored_completely(arguments, slow_batches, caplog, subcommand):
    fit(arguments, max_steps=0, subcommand=subcommand)
    assert len(slow_batches) == 12
    assert "no time limit" in caplog.text


@pytest.mark.usefixtures("in_tmp_path")
def test_a_run_resumes_after_a_check_that_left_samples_out(arguments, slow_batches):
    fit(arguments, more=json.loads(checkpoints(1)), max_seconds=7.0, every_n_steps=5, num_samples=4)
    assert len(records(0)) == 24
    resumed = ["--ckpt_path=runs/x/checkpoints/step=1.ckpt", "--trainer.max_steps=2"]
    main(["fit", "--config=runs/x/config.yaml", *resumed])
    assert len(losses()) == 2


def test_the_line_names_what_has_fewer_samples_and_what_has_none():
    wanted = {(task, 640, budget): 8 for task in ("vt", "fwe", "cwe", "qa_1") for budget in ("r1", "r0.5")}
    scored = wanted | dict.fromkeys([("fwe", 640, "r1"), ("fwe", 640, "r0.5")], 5)
    scored |= {("cwe", 640, "r1"): 0, ("cwe", 640, "r0.5"): 0, ("qa_1", 640, "r1"): 5, ("qa_1", 640, "r0.5"): 0}
    assert left_out(scored, wanted, 35.0) == (
        "left out after 35 s (max_seconds): 33 of 64; scored none of cwe/640, qa_1/640/r0.5; "
        "5 of 8 samples of fwe/640, qa_1/640/r1"
    )
    assert left_out(wanted, wanted, None) == ""


def test_later_checks_take_a_share_of_the_training_time_between_two(clock):
    time = CheckTime("auto")
    assert time.of_next(in_training=True) == FIRST_SECONDS
    for trained, expected in ((100, 35), (1000, 100), (5, 100)):
        time.training_goes_on()
        clock.now += trained
        assert time.of_next(in_training=True) == pytest.approx(expected)
        clock.now += 500  # of the check itself
    assert time.of_next(in_training=False) is None
    assert [CheckTime(given).of_next(in_training) for given in (None, 7.0) for in_training in (True, False)] == [
        *(None, None, 7.0, 7.0)
    ]
