"""Cells of grids and of random searches, and their names."""

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.path_names import checked_name
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
    ("described", "low", "high", "kind"),
    [
        ({"distribution": "uniform", "min": 0.0, "max": 1.0}, 0, 1, float),
        ({"min": 0.5, "max": 1.0}, 0.5, 1, float),
        ({"min": 2, "max": 5}, 2, 5, int),
        ({"distribution": "int_uniform", "min": 2, "max": 5}, 2, 5, int),
        ({"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}, 1e-6, 1e-2, float),
        ({"distribution": "q_uniform", "q": 16, "min": 16, "max": 640}, 16, 640, int),
        ({"distribution": "q_uniform", "q": 0.25, "min": 0.0, "max": 1.0}, 0, 1, float),
        ({"distribution": "q_log_uniform_values", "q": 8, "min": 8, "max": 4096}, 8, 4096, int),
        ({"values": [3, 4]}, 3, 4, int),
        ({"value": 7}, 7, 7, int),
    ],
)
def test_draws_lie_where_they_should_and_whole_numbers_stay_whole(make_sweep, described, low, high, kind):
    sweep = read_sweep(make_sweep({"x": described}, method="random"))
    drawn = [cell.parameters["x"] for cell in make_cells(sweep, 60)]
    assert all(low <= value <= high and type(value) is kind for value in drawn)
    assert "value" in described or len(set(drawn)) > 1
    if "q" in described:
        assert all(value % described["q"] == 0 for value in drawn)
    assert [cell.parameters["x"] for cell in make_cells(sweep, 60)] == drawn
    if "value" not in described:
        assert [cell.parameters["x"] for cell in make_cells(sweep, 60, seed=1)] != drawn


def test_rounding_to_multiples_stays_within_the_bounds(make_sweep):
    described = {"distribution": "q_uniform", "q": 16, "min": 1, "max": 40}
    cells = make_cells(read_sweep(make_sweep({"x": described}, method="random")), 60)
    assert {cell.parameters["x"] for cell in cells} == {16, 32}
    described = {"distribution": "q_uniform", "q": 0.1, "min": 0.1, "max": 0.3}  # 0.3 / 0.1 is a little below 3
    cells = make_cells(read_sweep(make_sweep({"x": described}, method="random")), 60)
    assert {round(cell.parameters["x"], 6) for cell in cells} == {0.1, 0.2, 0.3}


def test_log_uniform_values_spreads_over_the_decades(make_sweep):
    described = {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}
    cells = make_cells(read_sweep(make_sweep({"x": described}, method="random")), 400)
    below = sum(cell.parameters["x"] < 1e-4 for cell in cells)
    assert 150 < below < 250


def test_probabilities_weigh_values(make_sweep):
    described = {"values": ["a", "b"], "probabilities": [0.0, 1.0]}
    cells = make_cells(read_sweep(make_sweep({"x": described}, method="random")), 20)
    assert {cell.parameters["x"] for cell in cells} == {"b"}


def test_a_greater_count_goes_on_with_the_same_search(make_sweep):
    sweep = read_sweep(make_sweep({"x": {"min": 0.0, "max": 1.0}}, method="random", run_cap=4))
    few, many = make_cells(sweep), make_cells(sweep, 8)
    assert [cell.name for cell in many[:4]] == [cell.name for cell in few]
    assert few[0].name.startswith("001_x-0.")


@pytest.mark.parametrize(
    ("parameters", "keys", "message"),
    [
        ({"x": {"min": 0.0, "max": 1.0}}, {}, "a grid needs value or values"),
        ({"x": {"min": 0.0, "max": 1.0}}, {"method": "random"}, "give --count"),
        ({"x": {"value": 1}}, {"method": "bayes"}, "'bayes' needs W&B's server"),
        ({"x": {"parameters": {"y": {"value": 1}}}}, {}, "name the option in full"),
        ({"x": {"value": 1}}, {"command": ["${program}"]}, r"lacks \$\{args\}"),
        ({}, {}, "no 'parameters'"),
        ({"x": {"distribution": "beta"}}, {"method": "random", "run_cap": 1}, "'beta' is not one of"),
        ({"x": {"distribution": "uniform", "min": "1e-5", "max": 1}}, {"method": "random", "run_cap": 1}, "1.0e-5"),
        ({"x": {"min": 3, "max": 2}}, {"method": "random", "run_cap": 1}, "no value lies between"),
        (
            {"x": {"distribution": "q_uniform", "min": 1, "max": 2, "q": "a"}},
            {"method": "random", "run_cap": 1},
            "q is",
        ),
    ],
)
def test_errors_say_what_to_do(make_sweep, parameters, keys, message):
    with pytest.raises(InputError, match=message):
        make_cells(read_sweep(make_sweep(parameters, **keys)))


RANDOM = {"method": "random", "run_cap": 1}


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, "expected value, values or a distribution"),
        ([1, 2], "expected value, values or a distribution"),
        ({}, "min is None, expected a number"),
        ({"values": []}, r"values is \[\], expected a list of one value at least"),
        ({"values": None}, "values is None"),
        ({"values": "abc"}, "values is 'abc', expected a list"),
        ({"values": [1, 2, 1]}, "values holds 1 more than once"),
        ({"values": ["a", "a"]}, "values holds 'a' more than once"),
        ({"value": 1, "values": [1]}, "value and values contradict each other"),
        ({"value": 1, "min": 0}, "min has no meaning here, expected distribution, value"),
        ({"vales": [1]}, "vales has no meaning here"),
        ({"values": [1, 2], "distribution": "uniform"}, "distribution 'uniform' has no values"),
        ({"values": [1, 2], "probabilities": [0.5]}, "expected a list of 2 numbers, one a value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "probabilities sum to 1.1, expected 1"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "probabilities holds 1.5, expected numbers from 0 to 1"),
        ({"values": [1, 2], "probabilities": ["a", 1]}, "probabilities holds 'a'"),
        ({"values": [1, 2], "probabilities": [float("nan"), 1]}, "probabilities holds nan"),
        ({"distribution": "beta", "min": 0, "max": 1}, "'beta' is not one of"),
        ({"min": 0.5}, "max is None"),
        ({"min": 2, "max": 1}, "no value lies between min 2 and max 1"),
        ({"min": True, "max": 2}, "min is True"),
        ({"min": 0.0, "max": float("inf")}, "max is inf"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "expected whole numbers"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "no value above 0 lies between min 0 and max 1"),
        ({"distribution": "log_uniform_values", "min": -1, "max": 1}, "no value above 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 9, "q": 0}, "q is 0, expected a number above 0"),
        ({"distribution": "q_uniform", "min": 1, "max": 9, "q": 16}, "no multiple of q 16 lies between"),
        ({"distribution": "q_normal", "q": -1}, "q is -1"),
        ({"distribution": "normal", "sigma": 0}, "sigma is 0"),
        ({"distribution": "normal", "min": 0}, "min has no meaning here, expected distribution, mu, sigma"),
        ({"distribution": "uniform", "min": 0, "max": 1, "q": 2}, "q has no meaning here"),
    ],
)
def test_a_parameter_without_values_is_refused_when_the_file_is_read(make_sweep, described, message):
    for keys in ({}, RANDOM):
        with pytest.raises(InputError, match=rf"toy\.yaml: parameter x: .*{message}"):
            read_sweep(make_sweep({"x": described}, **keys))


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
        ({"method": "gird"}, "method 'gird'"),
        ({"parameters": {"x": {"min": 1, "max": 10**9}}}, "a grid over 1000000000 values has no end"),
        ({"parameters": {n: {"min": 1, "max": 5000} for n in "ab"}}, "the grid of sweep toy has 25000000 cells"),
    ],
)
def test_a_file_that_says_something_else_is_refused(make_sweep, keys, message):
    with pytest.raises(InputError, match=message):
        make_cells(read_sweep(make_sweep(**{"parameters": {"x": {"value": 1}}, **keys})))


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_count_below_1_is_refused(make_sweep, method, count):
    sweep = read_sweep(make_sweep({"x": {"values": [1, 2, 3]}}, method=method, run_cap=2))
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
    for files in ("a.jsonl", "b c.jsonl"):  # the builder must not keep the first one's
        monkeypatch.setenv("MY_FILES", files)
        built = build_command(sweep, {"x": 1, "y": True})
        assert built[:2] == ["/usr/bin/env", "python"]
        assert built[3:] == [f"--f={files}", "--x", "1", "--y", "True", "--x=1", "--y=True"]


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
