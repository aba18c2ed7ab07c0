"""The cells of grids, their names and their commands."""

import sys

import pytest

from lrsa_lightning.commands.training import make_parser
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.path_names import checked_name
from lrsa_lightning.sweep import build_command, make_cells, read_sweep


def test_a_grid_has_every_choice_once(make_sweep):
    file = make_sweep(
        {"m": {"values": ["x/a.yaml", "b.yaml"]}, "seed_everything": {"values": [1, 2]}, "c": {"value": 3}}
    )
    cells = make_cells(read_sweep(file))
    assert [cell.name for cell in cells] == ["a_seed-1", "a_seed-2", "b_seed-1", "b_seed-2"]
    assert [cell.setting for cell in cells] == ["a_c-3", "a_c-3", "b_c-3", "b_c-3"]
    assert cells[2].parameters == {"m": "b.yaml", "seed_everything": 1, "c": 3}
    assert len(make_cells(read_sweep(file), count=3)) == 3


def test_values_that_look_alike_get_numbers(make_sweep):
    cells = make_cells(read_sweep(make_sweep({"m": {"values": ["x/a.yaml", "y/a.yaml", {"class_path": "LRSA"}]}})))
    assert [cell.name for cell in cells] == ["001_a", "002_a", "m-class-path-LRSA"]


@pytest.mark.parametrize(
    ("described", "values"),
    [
        ({"value": 7}, [7]),
        ({"distribution": "constant", "value": 7}, [7]),
        ({"values": [3, "a"]}, [3, "a"]),
        ({"distribution": "categorical", "values": [3]}, [3]),
        ({"min": 2, "max": 4}, [2, 3, 4]),
        ({"distribution": "int_uniform", "min": 2, "max": 2}, [2]),
    ],
)
def test_each_form_of_a_parameter_has_its_values(make_sweep, described, values):
    cells = make_cells(read_sweep(make_sweep({"x": described})))
    assert [cell.parameters["x"] for cell in cells] == values


@pytest.mark.parametrize("method", ["random", "bayes", "gird", None])
def test_a_search_is_refused_with_the_way_out(make_sweep, method):
    file = make_sweep({"x": {"min": 0.0, "max": 1.0}}, method=method, run_cap=2)
    way_out = "give method: grid, or let W&B search with wandb sweep and wandb agent"
    with pytest.raises(InputError, match=rf"toy\.yaml: method is {method!r}.*{way_out}"):
        read_sweep(file)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, "expected value, values, or whole numbers"),
        ([1, 2], "expected value, values, or whole numbers"),
        ({"parameters": {"y": {"value": 1}}}, "name the option in full"),
        ({}, "min and max missing: expected value, values"),
        ({"distribution": "constant"}, "value missing: expected value"),
        ({"values": []}, r"values is \[\], expected a list with at least one value"),
        ({"values": None}, "values is None"),
        ({"values": "abc"}, "values is 'abc', expected a list"),
        ({"values": [1, 2, 1]}, "values holds 1 more than once"),
        ({"values": ["a", "a"]}, "values holds 'a' more than once"),
        ({"value": 1, "values": [1]}, "value and values contradict each other"),
        ({"value": 1, "min": 0}, "min has no meaning here, expected value"),
        ({"vales": [1]}, "vales has no meaning here"),
        ({"values": [1, 2], "distribution": "constant"}, "values has no meaning here, expected value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "probabilities has no meaning here"),
        ({"values": [1, 2], "distribution": "uniform"}, "a grid has no distribution 'uniform'"),
        ({"distribution": ["beta"], "min": 0, "max": 1}, r"a grid has no distribution \['beta'\]"),
        (
            {"distribution": "q_uniform", "q": 16, "min": 16, "max": 640},
            "no distribution 'q_uniform'.*`wandb sweep`",
        ),
        ({"min": 0.0, "max": 1.0}, "min is 0.0: expected value, values, or whole numbers"),
        ({"min": 1}, "max missing"),
        ({"min": 2, "max": 1}, "no value between min 2 and max 1"),
        ({"min": True, "max": 2}, "min is True"),
        ({"min": 0, "max": float("inf")}, "max is inf"),
        ({"min": 1, "max": 10**9}, "a grid over 1000000000 values is too large"),
    ],
)
def test_a_parameter_without_values_is_refused_when_the_file_is_read(make_sweep, described, message):
    with pytest.raises(InputError, match=rf"toy\.yaml: parameter x: .*{message}"):
        read_sweep(make_sweep({"x": described}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"run_cap": 0}, "run_cap is 0, expected a whole number of at least 1"),
        ({"run_cap": -2}, "run_cap is -2"),
        ({"run_cap": "3"}, "run_cap is '3'"),
        ({"run_cap": True}, "run_cap is True"),
        ({"metric": "ruler/subset_mean"}, "metric is 'ruler/subset_mean', expected its name and its goal"),
        ({"metric": {"goal": "maximize"}}, "expected its name and its goal"),
        ({"metric": {"name": "x", "goal": "maximise"}}, "goal is 'maximise', expected one of minimize, maximize"),
        ({"run_caps": 3}, "unknown key 'run_caps'; did you mean run_cap"),
        ({"metrics": {}}, "unknown key 'metrics'; did you mean metric"),
        ({"parameters": []}, "no 'parameters'"),
        ({"parameters": {1: {"value": 1}}}, "parameter 1: expected the name of an option"),
        ({"command": ["${program}", None, "${args}"]}, "the command holds None"),
        ({"program": 5}, "no 'program'"),
        ({"command": ["${program}"]}, r"lacks \$\{args\}"),
        ({"parameters": {n: {"min": 1, "max": 5000} for n in "ab"}}, "the grid of sweep toy has 25000000 cells"),
    ],
)
def test_a_file_that_says_something_else_is_refused(make_sweep, keys, message):
    with pytest.raises(InputError, match=message):
        make_cells(read_sweep(make_sweep(**{"parameters": {"x": {"value": 1}}, **keys})))


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_1_is_refused(make_sweep, count):
    sweep = read_sweep(make_sweep({"x": {"values": [1, 2, 3]}}, run_cap=2))
    with pytest.raises(InputError, match=f"--count is {count}"):
        make_cells(sweep, count)
    assert len(make_cells(sweep)) == 2


def test_a_metric_without_a_goal_is_minimised_as_wandb_does(make_sweep):
    assert read_sweep(make_sweep({"x": {"value": 1}}, metric={"name": "m"})).maximize is False
    assert read_sweep(make_sweep({"x": {"value": 1}}, metric=None)).metric is None


def test_a_missing_file_and_a_broken_one(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    for name, message in (("x.yaml", "expected a sweep file"), ("y.yaml", "cannot be read")):
        with pytest.raises(InputError, match=message):
            read_sweep(tmp_path / name)


def test_commands_are_those_of_wandbs_agent(make_sweep, monkeypatch):
    words = ["${env}", "${interpreter}", "${program}", "--f=${envvar:MY_FILES}", "${args_no_equals}", "${args}"]
    sweep = read_sweep(make_sweep({"x": {"value": 1}}, command=words))
    with pytest.raises(InputError, match="MY_FILES"):
        build_command(sweep, {"x": 1})
    for files in ("a.jsonl", "b c.jsonl"):  # W&B's builder must not keep the first value
        monkeypatch.setenv("MY_FILES", files)
        built = build_command(sweep, {"x": 1, "y": True})
        assert built[:2] == ["/usr/bin/env", "python"]
        assert built[3:] == [f"--f={files}", "--x", "1", "--y", "True", "--x=1", "--y=True"]


def test_without_wandb_a_sweep_says_what_to_install(make_sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "wandb.sdk.launch.sweeps.utils", None)
    with pytest.raises(InputError, match="pip install wandb"):
        build_command(read_sweep(make_sweep({"x": {"value": 1}})), {"x": 1})


def test_no_value_makes_a_name_that_leaves_the_sweep(make_sweep):
    """`..yaml` has the stem `.`, `...yaml` the stem `..`; what a sweep keeps beside its cells has names too."""
    values = ["..yaml", "...yaml", "x/....yaml", "cells.yaml", "report.yaml", ".locks.yaml", "x" * 300 + ".yaml"]
    for parameters in ({"m": {"values": values}}, {"m": {"values": values}, "n": {"values": ["", "/../x", "a\nb"]}}):
        names = [cell.name for cell in make_cells(read_sweep(make_sweep(parameters)))]
        assert len(set(names)) == len(names)
        for name in names:
            assert checked_name(name, "cell") == name


def test_a_value_that_looks_like_a_numbered_name_does_not_share_it(make_sweep):
    cells = make_cells(read_sweep(make_sweep({"m": {"values": ["a.yaml", "x/a.yaml", "001_a.yaml"]}})))
    assert len({cell.name for cell in cells}) == 3


def test_a_sweep_file_of_dots_has_a_folder_of_its_own(make_sweep):
    file = make_sweep({"m": {"values": [1]}})
    assert read_sweep(file.rename(file.with_name("...yaml"))).name == "unnamed"


def test_a_list_of_ratios_is_one_value(make_sweep):
    """One cell has a ratio for all steps, the other has several."""
    key = "model.attention.retention_ratio"
    sweep = read_sweep(make_sweep({key: {"values": [0.5, [1.0, 0.5, 0.25]]}}))
    cells = make_cells(sweep)
    assert [cell.name for cell in cells] == ["retention_ratio-0.5", "retention_ratio-1.0-0.5-0.25"]
    option = build_command(sweep, cells[1].parameters)[-1]
    parser = make_parser()
    given = parser.parse_args(["--model.attention=LRSA", option])
    assert given.model.attention.init_args.retention_ratio == [1.0, 0.5, 0.25]
