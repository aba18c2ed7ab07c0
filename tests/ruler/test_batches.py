"""The order of an evaluation: cell by cell, or a bit of everything first."""

import pytest

from lrsa_lightning.ruler.batches import breadth_first, cell_by_cell, in_turn

BUDGETS = ["r1", "r0.5"]


def rows(task: str, length: int, *fills: int) -> list[dict]:
    return [{"id": f"{task}-{length}-{i}", "task": task, "length": fill} for i, fill in enumerate(fills)]


SAMPLES = {
    ("vt", 640): rows("vt", 640, 600, 620, 610, 630, 605),
    ("cwe", 640): rows("cwe", 640, 500, 600, 500),
    ("vt", 4096): rows("vt", 4096, 4000, 3000),
}


def ids(batch) -> list[str]:
    return [row["id"] for row in batch.rows]


def sizes(number: int) -> dict:
    return {(length, budget): number for length in (640, 4096) for budget in BUDGETS}


def test_a_cell_is_scored_shortest_first_without_what_is_done():
    done = {("vt-640-2", "r1"), *((f"cwe-640-{i}", budget) for i in range(3) for budget in BUDGETS)}
    groups = [*cell_by_cell(SAMPLES, BUDGETS, sizes(2), done)]
    assert {len(group) for group in groups} == {1}
    assert [(batch.name, ids(batch)) for (batch,) in groups] == [
        ("vt/640/r1", ["vt-640-0", "vt-640-4"]),
        ("vt/640/r1", ["vt-640-1", "vt-640-3"]),
        ("vt/640/r0.5", ["vt-640-0", "vt-640-4"]),
        ("vt/640/r0.5", ["vt-640-2", "vt-640-1"]),
        ("vt/640/r0.5", ["vt-640-3"]),
        ("vt/4096/r1", ["vt-4096-1", "vt-4096-0"]),
        ("vt/4096/r0.5", ["vt-4096-1", "vt-4096-0"]),
    ]


def test_the_batches_of_a_cell_are_even():
    samples = {("vt", 640): rows("vt", 640, *range(100))}
    assert [len(batch.rows) for (batch,) in cell_by_cell(samples, ["r1"], {(640, "r1"): 32})] == [25] * 4


def test_breadth_first_takes_a_sample_of_each_task_in_turn_at_all_lengths_under_all_budgets():
    groups = [*breadth_first(SAMPLES, BUDGETS, sizes(4))]
    assert [[(batch.name, ids(batch)) for batch in group] for group in groups] == [
        [(f"640/{r}", ["vt-640-0", "cwe-640-0", "vt-640-1", "cwe-640-1"]) for r in BUDGETS],
        [(f"vt/4096/{r}", ["vt-4096-0", "vt-4096-1"]) for r in BUDGETS],
        [(f"640/{r}", ["vt-640-2", "cwe-640-2", "vt-640-3", "vt-640-4"]) for r in BUDGETS],
    ]


@pytest.mark.parametrize("number", [1, 3])
def test_a_budget_whose_batches_are_smaller_has_the_same_samples_in_each_group(number):
    small = {**sizes(4), (640, "r1"): number}
    for group in breadth_first(SAMPLES, BUDGETS, small):
        of_budget = {r: [i for batch in group if batch.budget == r for i in ids(batch)] for r in BUDGETS}
        assert of_budget["r1"] == of_budget["r0.5"]
        assert all(len(batch.rows) <= small[batch.length, batch.budget] for batch in group)


def test_in_turn():
    assert in_turn([[1, 2, None], [], [3]]) == [1, 3, 2, None]
