"""What the pictures of cost show, by hand."""

import pytest

from lrsa_lightning.report import Run, compare, read_runs, write_report
from lrsa_lightning.report.cost_figures import bytes_and_scores, draw_bytes, draw_times
from tests.report.conftest import records


def test_sizes_and_scores_are_means_over_tasks_and_lengths():
    parts = [
        *records({"vt": [1.0], "fwe": [0.0]}, kv_bytes=4 * 2**20),
        *records({"vt": [1.0]}, 8192, kv_bytes=8 * 2**20),
        *records({"vt": [0.5], "fwe": [0.0]}, budget="r0.5", kv_bytes=2 * 2**20),
        *records({"vt": [0.0]}, 8192, budget="r0.5", kv_bytes=5 * 2**20),
    ]
    own = Run("a", "a", records=parts)
    assert bytes_and_scores(own, compare([own])) == {"r1": (6.0, 75.0), "r0.5": (3.5, 12.5)}


def test_without_sizes_or_times_there_is_no_picture(tmp_path):
    own = Run("a", "a", records=records({"vt": [1.0]}), losses=([0, 1], [2.0, 1.0]))
    assert draw_bytes([own], compare([own]), tmp_path / "x.png") is None
    assert draw_times([own], tmp_path / "x.png") is None
    assert not list(tmp_path.iterdir())


def test_the_time_of_training_leaves_out_evaluations(make_run, tmp_path):
    folder = make_run("a", {2: records({"vt": [1.0, 0.0]}, kv_bytes=2**20)}, [3.0, 2.0])
    seconds = ({"compute": 5.0, "data": 1.0, "evaluation": 100.0}, {"compute": 4.0, "data": 0.5, "evaluation": 0.0})
    rows = (folder / "metrics.jsonl").read_text()
    for step, parts in enumerate(seconds, 1):
        timed = "".join(f', "throughput/seconds/{part}": {value}' for part, value in parts.items())
        rows = rows.replace(f'{{"step": {step}, "train', f'{{"step": {step}{timed}, "train')
    (folder / "metrics.jsonl").write_text(rows)
    (run,) = read_runs([str(folder)])
    assert run.seconds == pytest.approx({1: 6.0, 2: 10.5})
    names = [path.name for path in write_report([run], tmp_path / "out").files]
    assert {"fig5_bytes.png", "fig6_time.png"} <= {*names}


def test_the_budgets_of_each_size_of_a_cache_are_named(tmp_path, monkeypatch):
    """Two models: the same budget has 1 MiB in one and 4 MiB in the other."""
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure))
    runs = [
        Run(name, name, records=records({"vt": [1.0]}, kv_bytes=size * 2**20)) for name, size in (("a", 1), ("b", 4))
    ]
    runs.append(Run("c", "c", records=runs[0].records))
    draw_bytes(runs, compare(runs), tmp_path / "x.png")
    texts = [(text.get_text(), text.xy) for text in drawn[0].axes[0].texts]
    assert texts == [("1x", (1.0, 100)), ("1x", (4.0, 100))]
