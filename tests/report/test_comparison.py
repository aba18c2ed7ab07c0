"""Table 1: means and standard errors by hand, what a mean may be called, and which tasks are in it."""

import csv

import pytest

from lrsa_lightning.report import Run, compare, to_csv, to_markdown
from lrsa_lightning.report.comparison import budget_name, length_name
from lrsa_lightning.report.tables import task_table
from lrsa_lightning.ruler import TASKS
from tests.report.conftest import records


def run(label, *parts):
    return Run(label, label, records=[record for part in parts for record in part])


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_means_and_standard_errors_by_hand():
    # vt: 100 and 0, so 50, its deviation 70.71, its error 50; fwe: 100, 100, 100, 0, so 75 with error 25.
    own = run("a", records({"vt": [1.0, 0.0], "fwe": [1.0, 1.0, 1.0, 0.0]}), records({"vt": [1.0, 1.0]}, 8192))
    (row,) = rows_of(to_csv(compare([own])))
    assert (row["model"], row["budget"], row["mean"]) == ("a", "1x", "subset mean")
    assert float(row["4K"]) == 62.5
    assert float(row["4K stderr"]) == pytest.approx((50**2 + 25**2) ** 0.5 / 2, abs=1e-3)
    assert (float(row["8K"]), float(row["8K stderr"])) == (100, 0)
    assert float(row["Avg"]) == 81.25
    assert float(row["Avg stderr"]) == pytest.approx((50**2 + 25**2) ** 0.5 / 4, abs=1e-3)
    assert row["tasks"] == "4K: 2 tasks (vt, fwe); 8K: 1 task (vt)"


def test_a_single_sample_has_no_standard_error():
    (row,) = rows_of(to_csv(compare([run("a", records({"vt": [1.0], "fwe": [1.0, 0.0]}))])))
    assert (row["4K"], row["4K stderr"], row["Avg stderr"]) == ("75", "", "")


def test_only_all_13_tasks_at_each_length_are_rulers_average():
    every = {task: [1.0] for task in TASKS}
    most = {task: [1.0] for task in list(TASKS)[:-1]}
    assert compare([run("a", records(every))]).caption == "RULER average over all 13 tasks"
    twelve = compare([run("a", records(most))])
    assert (twelve.name, twelve.caption[:26]) == ("subset mean", "Subset mean over 12 tasks ")
    assert "niah_single_1" in twelve.caption
    mixed = compare([run("a", records(every), records(most, 8192))])
    assert mixed.name == "subset mean"
    assert "RULER average" not in to_markdown(mixed) + to_csv(mixed)


def test_a_task_that_one_run_or_budget_lacks_is_in_no_mean():
    a = run(
        "a", records({"vt": [1.0], "cwe": [0.0]}), records({"vt": [1.0]}, budget="r0.5"), records({"cwe": [1.0]}, 8192)
    )
    b = run("b", records({"vt": [0.0], "fwe": [0.0]}), records({"vt": [0.5]}, 8192))
    comparison = compare([a, b])
    assert comparison.tasks == {4096: ["vt"]}
    assert comparison.left_out == {4096: ["cwe", "fwe"], 8192: ["vt", "cwe"]}
    assert [row["4K"] for row in rows_of(to_csv(comparison))] == ["100", "0", "100"]


def test_runs_that_share_nothing_are_not_compared():
    assert compare([run("a", records({"vt": [1.0]})), run("b", records({"cwe": [1.0]}))]) is None


def test_nothing_scored_is_no_comparison():
    rated = records({"vt": [None]}, nll=1.0, exact_match=True)
    assert compare([run("a", rated)]) is None


def test_the_best_run_of_a_column_and_budget_is_bold_and_a_gap_has_no_average():
    a = run("a", records({"vt": [0.5]}), records({"vt": [0.5]}, 8192), records({"vt": [0.25]}, budget="window"))
    b = run("b|c", records({"vt": [0.75]}), records({"vt": [0.25]}, budget="r0.25"))
    assert to_markdown(compare([a, b])).splitlines() == [
        "Subset mean over 1 task (vt)",
        "",
        "| Model | Budget | 4K | 8K | Avg |",
        "| --- | --- | ---: | ---: | ---: |",
        "| a | 1x | 50.0 | 50.0 | 50.0 |",
        "| b\\|c | 1x | **75.0** | – | – |",
        "| b\\|c | 4x | 25.0 | – | – |",
        "| a | window | 25.0 | – | – |",
    ]


def test_each_mean_has_all_its_figures():
    own = run("a", records({"vt": [1.0, 0.0]}, budget="r0.5", nll=0.25, exact_match=True), records({"cwe": [None]}))
    vt, cwe = rows_of(task_table([own]).to_csv(index=False))
    assert list(vt.values()) == ["a", "vt", "4096", "2x", "50", "50", "2", "0.25", "100"]
    assert list(cwe.values()) == ["a", "cwe", "4096", "1x", "", "", "1", "", ""]


def test_names_of_budgets_and_lengths():
    names = {"r1": "1x", "r0.5": "2x", "r0.25": "4x", "r0.3": "3.33x", "window": "window", "r0": "r0"}
    assert {budget: budget_name(budget) for budget in names} == names
    assert [length_name(length) for length in (512, 1024, 4096, 131072)] == ["512", "1K", "4K", "128K"]


def test_the_best_run_of_a_lower_budget_is_bold_beside_a_better_dense_one():
    a = run("a", records({"vt": [1.0]}), records({"vt": [0.5]}, budget="r0.5"))
    b = run("b", records({"vt": [0.75]}), records({"vt": [0.25]}, budget="r0.5"))
    assert [line.split(" | ")[:3] for line in to_markdown(compare([a, b])).splitlines()[4:]] == [
        ["| a", "1x", "**100.0**"],
        ["| b", "1x", "75.0"],
        ["| a", "2x", "**50.0**"],
        ["| b", "2x", "25.0"],
    ]
