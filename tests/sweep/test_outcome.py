"""The table, and whether cells may be compared."""

import csv
import json

import pytest

from lrsa_lightning.sweep import Result, SweepRunner, conclude, make_cells, make_slots, read_sweep


@pytest.fixture
def outcome(make_sweep, runs):
    """(parameters, keys of the file) -> sweep run with the stub and concluded."""

    def make(parameters, change=lambda: None, **keys):
        sweep = read_sweep(make_sweep(parameters, **keys))
        results = SweepRunner(sweep, runs, make_slots(2, []), say=lambda line: None).run(make_cells(sweep))
        change()
        return conclude(sweep, runs, results)

    return make


def test_the_table_and_the_report(outcome, runs):
    found = outcome({"mode": {"values": ["a", "b"]}})
    header, first, second = [line.split() for line in found.table.splitlines()]
    assert header == ["cell", "ruler/subset_mean", "standard", "error", "tokens", "status"]
    assert first == ["mode-a", "26", "–", "100", "finished"]
    assert second == ["mode-b", "*", "51", "–", "100", "finished"]
    assert any("same samples in the same order, 100 tokens each" in note for note in found.notes)
    names = {path.relative_to(runs / "report").as_posix() for path in found.files}
    assert {"table1.md", "fig2_loss.png", "report.html"} <= names
    assert all(path.exists() for path in found.files)


def test_a_cell_has_its_error_over_samples(outcome, runs):
    """By hand: two samples score 0 and 100, half of it under the other budget: 0 and 75, whose error is 37.5."""

    def more_samples():
        for mode in "ab":
            file = runs / f"mode-{mode}/ruler/step-000002.jsonl"
            record = json.loads(file.read_text())
            scores = [("x", "r1", 0.0), ("y", "r1", 1.0), ("x", "r0.5", 0.0), ("y", "r0.5", 0.5)]
            rows = [record | {"id": name, "budget": budget, "score": score} for name, budget, score in scores]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = outcome({"mode": {"values": ["a", "b"]}}, change=more_samples)
    assert [line.split()[2] for line in found.table.splitlines()[1:2]] == ["37.5"]
    cells = list(csv.reader((runs / "report/sweep_cells.csv").open()))
    assert [row[2] for row in cells] == ["standard error", "37.5", "37.5"]


def test_a_metric_to_minimise_has_the_least_as_its_best(outcome):
    found = outcome({"mode": {"values": ["a", "b"]}}, metric={"name": "ruler/subset_mean", "goal": "minimize"})
    assert next(line for line in found.table.splitlines() if "*" in line).startswith("mode-a")


def test_seeds_are_averaged_and_each_has_its_report(outcome, runs):
    found = outcome({"mode": {"values": ["a", "b"]}, "seed_everything": {"values": [1, 3]}})
    lines = [line.split() for line in found.table.splitlines()]
    assert lines[-2] == ["mode-a", "27", "1.41421", "1", "2"]
    assert lines[-1] == ["mode-b", "52", "1.41421", "1", "2"]
    assert {path.parent.name for path in found.files} == {"report", "seed-1", "seed-3"}
    cells, seeds = (list(csv.reader((runs / "report" / f"sweep_{name}.csv").open())) for name in ("cells", "seeds"))
    assert cells[0] == ["cell", "ruler/subset_mean", "standard error", "tokens", "status"]
    assert [row[2:] for row in cells[1:]] == [["", "100", "finished"]] * 4
    assert [float(row[1]) for row in cells[1:]] == pytest.approx([26, 28, 51, 53])
    assert [float(number) for number in seeds[1][1:]] == pytest.approx([27, 2**0.5, 1, 2])
    page = (runs / "report/seed-1/report.html").read_text()
    assert "<h2>Cells</h2>" in page
    assert "<h2>Settings, over seeds</h2>" in page
    # Each report has one seed: nothing in it says that the order differs.
    assert not any("did not train on the same data" in note for note in found.notes)


@pytest.mark.parametrize(("mode", "what"), [("long", "data.seq_len is"), ("more", "the number of tokens is")])
def test_other_data_or_other_amounts_are_not_compared(outcome, mode, what):
    found = outcome({"mode": {"values": ["a", mode]}})
    assert any(what in note for note in found.notes)
    assert any("no cell is called the best" in note for note in found.notes)
    assert not any("same order" in note and "tokens each" in note for note in found.notes)
    assert "*" not in found.table


def test_no_mean_over_seeds_of_unequal_cells(outcome):
    found = outcome({"mode": {"values": ["a", "long"]}, "seed_everything": {"values": [1, 2]}})
    assert "deviation" not in found.table


def test_other_tasks_are_not_compared(outcome, runs):
    def change():
        file = runs / "mode-b/ruler/step-000002.jsonl"
        record = json.loads(file.read_text()) | {"task": "vt"}
        file.write_text(file.read_text() + json.dumps(record) + "\n")

    found = outcome({"mode": {"values": ["a", "b"]}}, change)
    assert any("not scored on the same RULER tasks" in note for note in found.notes)
    assert "*" not in found.table


def test_a_base_model_that_was_only_scored_does_not_spoil_the_comparison(outcome, runs):
    def change():
        (runs / "mode-a/metrics.jsonl").write_text('{"step": 0, "ruler/subset_mean": 1.0}\n')
        (runs / "mode-a/config.yaml").write_text('{"trainer": {"max_steps": 0}}')

    found = outcome({"mode": {"values": ["a", "b", "c"]}}, change)
    assert any("100 tokens each" in note for note in found.notes)
    assert "*" in found.table


def test_a_subset_is_never_called_rulers_average(outcome):
    found = outcome({"mode": {"values": ["a", "b"]}}, metric={"name": "ruler/average", "goal": "maximize"})
    assert any("needs all 13 tasks" in note and "ruler/subset_mean" in note for note in found.notes)
    assert all("–" in line for line in found.table.splitlines()[1:])


def test_a_failed_cell_has_a_line_and_no_place_in_the_report(make_sweep, runs):
    sweep = read_sweep(make_sweep({"mode": {"values": ["a", "b"]}}))
    (runs / "fail-b").touch()
    results = SweepRunner(sweep, runs, make_slots(1, []), say=lambda line: None).run(make_cells(sweep))
    assert [type(result) for result in results] == [Result, Result]
    found = conclude(sweep, runs, results)
    assert "failed (3)" in found.table.splitlines()[2]
    assert any(note.startswith("mode-b is not in the report") for note in found.notes)
    assert found.files


@pytest.mark.parametrize(
    ("status", "said"), [(0, "finished"), (1, "failed (1)"), (-9, "failed (-9)"), (None, "running")]
)
def test_only_status_0_is_finished(outcome, runs, make_sweep, status, said):
    outcome(parameters := {"mode": {"values": ["a", "b"]}})
    sweep = read_sweep(make_sweep(parameters))
    first, second = make_cells(sweep)
    found = conclude(sweep, runs, [Result(first, 0), Result(second, status)])
    line = next(line for line in found.table.splitlines() if line.startswith("mode-b"))
    assert said in line
    # A value of a cell that did not finish is nobody's best.
    assert ("*" in line) == (status == 0)


def test_the_best_is_that_of_the_finished_cells(outcome, runs, make_sweep):
    outcome(parameters := {"mode": {"values": ["a", "b", "c"]}})
    sweep = read_sweep(make_sweep(parameters))
    results = [Result(cell, status) for cell, status in zip(make_cells(sweep), (0, 0, 1), strict=True)]
    lines = conclude(sweep, runs, results).table.splitlines()
    assert [line.split()[0] for line in lines if "*" in line] == ["mode-b"]


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_a_value_that_is_no_number_is_never_the_best(outcome, runs, goal):
    def change():
        for mode, values in (("a", "NaN"), ("c", "null")):
            file = runs / f"mode-{mode}/metrics.jsonl"
            file.write_text(file.read_text() + f'{{"step": 1, "ruler/subset_mean": {values}}}\n')

    metric = {"name": "ruler/subset_mean", "goal": goal}
    found = outcome({"mode": {"values": ["a", "b", "c", "d"]}}, change, metric=metric)
    starred = [line.split()[0] for line in found.table.splitlines() if "*" in line]
    assert starred == ["mode-d" if goal == "maximize" else "mode-b"]


def test_a_seed_whose_value_is_no_number_leaves_its_setting_without_a_mean(outcome, runs):
    def change():
        file = runs / "mode-a_seed-1/metrics.jsonl"
        file.write_text(file.read_text() + '{"step": 1, "ruler/subset_mean": NaN}\n')

    found = outcome({"mode": {"values": ["a", "b"]}, "seed_everything": {"values": [1, 3]}}, change)
    lines = [line.split() for line in found.table.splitlines()]
    assert lines[-2:] == [["mode-a", "nan", "nan", "nan", "2"], ["mode-b", "52", "1.41421", "1", "2"]]


def test_a_damaged_metrics_file_leaves_the_others_their_table(outcome, runs):
    def change():
        file = runs / "mode-b/metrics.jsonl"
        file.write_text('{"step": 0, "train/lo\n' + file.read_text())

    found = outcome({"mode": {"values": ["a", "b"]}}, change)
    first, second = [line.split() for line in found.table.splitlines()[1:]]
    assert (first[1], second[1]) == ("26", "–")
    assert any("mode-b is not in the report" in note and "metrics.jsonl, line 1" in note for note in found.notes)


def test_cells_scored_on_other_samples_are_not_compared(outcome, runs):
    def change():
        for mode in "ab":
            file = runs / f"mode-{mode}/ruler/step-000002.jsonl"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"digest": mode}) + "\n")

    found = outcome({"mode": {"values": ["a", "b"]}}, change)
    assert any("not scored on the same RULER samples" in note for note in found.notes)
    assert "*" not in found.table


def test_a_metric_that_no_cell_logged_is_said_with_those_of_its_kind(outcome):
    found = outcome({"mode": {"values": ["a", "b"]}}, metric={"name": "train/los", "goal": "minimize"})
    (note,) = [note for note in found.notes if "was not logged" in note]
    assert note == "mode-a, mode-b: train/los was not logged, but train/loss, train/tokens."
