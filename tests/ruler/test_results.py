"""Means, standard errors and names of scores, worked out by hand."""

import json
from dataclasses import replace

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import TASKS
from lrsa_lightning.ruler.heat_map import depth_scores, draw_depths
from lrsa_lightning.ruler.records import Record, read_records, write_records
from lrsa_lightning.ruler.results import cell_scores, metrics, table
from lrsa_lightning.ruler.summary import score_table


def record(i, task="vt", length=4096, budget="r1", score=1.0, **values):
    return Record(f"{task}-{i}", task, length, budget, 0.9, ["a", "b"], [0.05, 0.95], score=score, **values)


def test_means_and_standard_errors():
    records = [record(0, score=1.0, nll=1.0, exact_match=True, kv_bytes=10), record(1, score=0.5, nll=2.0, kv_bytes=20)]
    records += [record(2, score=0.0, nll=6.0, exact_match=False, kv_bytes=30), record(0, budget="r0.5", score=0.25)]
    first, second = cell_scores(records)
    assert (first.count, first.score, first.nll, first.exact_match, first.kv_bytes) == (3, 50.0, 3.0, 50.0, 20)
    assert first.stderr == 28.87  # 50 / sqrt(3): the sample deviation of 0, 50, 100 is 50
    assert (second.score, second.stderr, second.nll, second.exact_match) == (25.0, None, None, None)


def test_a_mean_is_called_rulers_average_only_over_all_13_tasks():
    some = metrics(cell_scores([record(0, "vt", score=1.0), record(0, "cwe", score=0.0)]))
    assert some["ruler/subset_mean/4096/r1"] == some["ruler/subset_mean"] == 50
    assert not any("average" in name for name in some)
    every = [record(0, task, score=float(task == "vt")) for task in TASKS]
    figures = metrics(cell_scores([*every, record(0, "vt", 8192, score=1.0)]))
    assert figures["ruler/average/4096/r1"] == figures["ruler/subset_mean/4096/r1"] == pytest.approx(7.6923)
    assert "ruler/average/8192/r1" not in figures
    assert "ruler/average" not in figures
    assert metrics(cell_scores(every))["ruler/average"] == pytest.approx(7.6923)


def test_figures_of_each_length_and_budget_are_of_its_own_records():
    records = [record(0, score=1 / 3, kv_bytes=10), record(1, "cwe", score=0.0, kv_bytes=20)]
    records += [record(0, budget="r0.5", score=0.0, kv_bytes=5), record(0, length=8192, score=1.0, kv_bytes=100)]
    records[3] = replace(records[3], fill=0.5)
    figures = metrics(cell_scores(records))
    assert figures["ruler/vt/4096/r1"] == 33.33
    names = ["4096/r1", "4096/r0.5", "8192/r1"]
    assert [figures[f"ruler_kv_bytes/{name}"] for name in names] == [15, 5, 100]
    assert (figures["ruler_fill/4096"], figures["ruler_fill/8192"]) == (pytest.approx(0.9), 0.5)
    assert [figures[f"ruler/subset_mean/{name}"] for name in names] == [16.665, 0, 100]
    assert figures["ruler/subset_mean"] == pytest.approx((33.33 + 0 + 0 + 100) / 4, abs=1e-4)


def test_figures_that_were_not_measured_are_not_logged():
    figures = metrics(cell_scores([record(0, score=None, nll=2.0, exact_match=True)]))
    assert figures == {
        "ruler_nll/vt/4096/r1": 2.0,
        "ruler_exact_match/vt/4096/r1": 100.0,
        "ruler_nll/subset_mean/4096/r1": 2.0,
        "ruler_nll/subset_mean": 2.0,
        "ruler_exact_match/subset_mean/4096/r1": 100.0,
        "ruler_exact_match/subset_mean": 100.0,
        "ruler_fill/4096": 0.9,
        "ruler_samples/vt/4096/r1": 1,
    }


def test_records_survive_their_file_and_a_corrupt_last_line(tmp_path):
    records = [record(0, prediction="x\n\u2028y", hits=[True, False]), record(1)]
    path = tmp_path / "new" / "results.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    with path.open("a") as file:
        file.write(records[0].line()[:40])
    assert read_records(path) == records
    assert table(records)[1][0][:6] == ["vt-0", "vt", 4096, "r1", "a | b", "x\n\u2028y"]


WRONG_VALUES = [
    ("id", 1),
    ("task", "vtt"),
    ("length", 0),
    ("length", "4096"),
    ("budget", 0.5),
    ("fill", None),
    ("outputs", "a"),
    ("outputs", [1]),
    ("depths", [1.5]),
    ("prediction", ["a"]),
    ("score", "0.5"),
    ("score", 50),
    ("score", float("nan")),
    ("score", True),
    ("hits", [1]),
    ("kv_bytes", -1),
    ("nll", "1"),
    ("exact_match", 1),
    ("digest", 5),
]


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_a_record_of_wrong_values_is_named(tmp_path, key, value):
    write_records(path := tmp_path / "results.jsonl", [record(0)])
    row = json.loads(record(1).line()) | {key: value}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"results\.jsonl, line 2: {key} is .*, expected .*remove the line"):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "budget, depths, fill, id, length, outputs, task missing"),
        ('{"other": 1}', "other unknown"),
        ("[]", "expected a JSON object, not list"),
        ('{"id": ', "expected a JSON object"),
    ],
)
def test_a_corrupt_line_between_records_is_named(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    path.write_text(record(0).line() + line + "\n" + record(1).line())
    with pytest.raises(InputError, match=rf"results\.jsonl, line 2: {message}"):
        read_records(path)


def test_two_records_of_one_sample_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    write_records(path, [record(0), record(0, budget="r0.5"), record(0, score=0.5)])
    with pytest.raises(InputError, match=r"line 3: sample vt-0 is there twice under r1"):
        read_records(path)


def test_a_diverged_models_likelihood_is_read(tmp_path):
    write_records(path := tmp_path / "results.jsonl", [record(0, nll=float("nan"))])
    assert str(read_records(path)[0].nll) == "nan"


def test_heat_map_by_depth(tmp_path):
    records = [record(0, hits=[True, False]), record(1, hits=[False, False]), record(2, budget="r0.5", hits=[True] * 2)]
    scores = depth_scores(records)
    assert scores[4096, "r1"] == [50.0, *[None] * 8, 0.0]
    assert scores[4096, "r0.5"] == [100.0, *[None] * 8, 100.0]
    assert draw_depths(records, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert draw_depths([record(0)], tmp_path / "none.png") is None


def test_the_heat_map_shows_depth_downwards_on_a_scale_from_0_to_100(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure))
    draw_depths([record(0, hits=[True, False]), record(1, hits=[False, False])], tmp_path / "x.png", "step 3")
    axes = drawn[0].axes[0]
    (image,) = axes.images
    assert image.get_clim() == (0, 100)
    assert [row[0] for row in image.get_array().filled(-1).tolist()] == [50.0, *[-1] * 8, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()][::9] == ["0-10%", "90-100%"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4096\nr1"]
    # Two cells have a value and their number of needles; the others are empty.
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "50\n(2)", (0, 9): "0\n(2)"}
    assert drawn[0].get_suptitle() == "Needles found by depth, %\nstep 3"
    assert axes.get_xlabel().endswith("in brackets: needles; grey: none")


def test_a_needle_at_the_very_end_counts_in_the_last_tenth():
    found = [Record("vt-0", "vt", 4096, "r1", 0.9, ["a", "b"], [0.0, 1.0], score=1.0, hits=[False, True])]
    assert depth_scores(found)[4096, "r1"] == [0.0, *[None] * 8, 100.0]


def test_score_table():
    one = [record(0, score=1.0), record(0, budget="r0.5", score=0.5)]
    assert score_table(metrics(cell_scores(one))).splitlines() == [
        "task  length       r1     r0.5  samples",
        "vt      4096      100       50        1",
    ]
    two = [record(0, score=1.0), record(0, "cwe", score=0.5), record(1, "cwe", score=0.5)]
    two.append(record(0, "cwe", budget="r0.5", score=0.25))
    assert score_table(metrics(cell_scores(two))).splitlines() == [
        "task           length       r1     r0.5  samples",
        "vt               4096      100                 1",
        "cwe              4096       50       25      1-2",
        "subset_mean      4096       75       25",
    ]
