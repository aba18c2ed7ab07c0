"""The sweep file, in W&B's format."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.path_names import made_name
from lrsa_lightning.files.yaml_text import read_mapping

_GOALS = ("minimize", "maximize")
_READ = ("program", "method", "metric", "parameters", "command", "run_cap")
# W&B's names for the forms of a grid's parameter, with the keys of each.
_KEYS = {"constant": ["value"], "categorical": ["values"], "int_uniform": ["min", "max"]}
_MOST_VALUES = 10_000
_EXPECTED = "expected value, values, or whole numbers as min and max"


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        name: of the file.
        program: what ${program} stands for.
        parameters: all values of each option.
        command: words and macros.
        metric: its name; None without one.
        maximize: whether a greater metric is better.
        run_cap: greatest number of runs; None without one.
    """

    name: str
    program: str
    parameters: dict[str, Sequence[Any]]
    command: list[str]
    metric: str | None = None
    maximize: bool = False
    run_cap: int | None = None


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Raises:
        InputError: the file does not exist, lacks a part, or is not a grid.
    """
    content = read_mapping(path, "a sweep file, as configs/sweeps/*.yaml")
    for key, kind in (("program", str), ("parameters", dict), ("command", list)):
        if not isinstance(content.get(key), kind) or not content[key]:
            raise InputError(f"{path} has no {key!r}: give program, method, parameters and command as W&B's sweeps do")
    try:
        _check(content)
        parameters = {name: _values(name, described) for name, described in content["parameters"].items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    metric = content.get("metric") or {}
    return Sweep(
        name=made_name(path.stem),
        program=content["program"],
        parameters=parameters,
        command=[str(word) for word in content["command"]],
        metric=metric.get("name"),
        maximize=metric.get("goal") == "maximize",  # as in W&B, the default goal is to minimize
        run_cap=content.get("run_cap"),
    )


def _check(content: dict[str, Any]) -> None:
    """Checks all but the parameters. A misspelt key would be ignored: it is refused."""
    for key in content.keys() - _READ:
        if near := get_close_matches(str(key), _READ, 1, cutoff=0.75):
            raise InputError(f"unknown key {key!r}; did you mean {near[0]}?")
    if (method := content.get("method")) != "grid":
        raise InputError(
            f"method is {method!r}, but `lrsa sweep` runs grids only: give method: grid, or let W&B search with "
            "wandb sweep and wandb agent"
        )
    if (metric := content.get("metric")) is not None:
        if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or not metric["name"]:
            raise InputError(f"metric is {metric!r}, expected its name and its goal")
        if (goal := metric.get("goal", "minimize")) not in _GOALS:
            raise InputError(f"the metric's goal is {goal!r}, expected one of {', '.join(_GOALS)}")
    for word in content["command"]:
        if not isinstance(word, str | int | float):
            raise InputError(f"the command holds {word!r}, expected words and macros")
    if "${args}" not in content["command"]:
        raise InputError("the command lacks ${args}, which passes the values of a cell to it")
    if (run_cap := content.get("run_cap")) is not None and not (_is_whole(run_cap) and run_cap > 0):
        raise InputError(f"run_cap is {run_cap!r}, expected a whole number of at least 1")


def _values(name: Any, described: Any) -> Sequence[Any]:
    """All values of a parameter."""
    if not isinstance(name, str) or not name:
        raise InputError(f"parameter {name!r}: expected the name of an option")
    try:
        form = _form(described)
        if form == "constant":
            return [described["value"]]
        return (
            _listed(described["values"])
            if form == "categorical"
            else _whole_numbers(described["min"], described["max"])
        )
    except InputError as error:
        raise InputError(f"parameter {name}: {error}") from error


def _form(described: Any) -> str:
    """W&B's name for the form of a parameter that has exactly the keys of that form."""
    if not isinstance(described, dict) or "parameters" in described:
        raise InputError(f"{_EXPECTED}; for nested values name the option in full, as model.lr, or sweep over files")
    if {"value", "values"} <= described.keys():
        raise InputError("value and values contradict each other: give one")
    given = [form for form, keys in _KEYS.items() if any(key in described for key in keys)]
    form = described.get("distribution", given[0] if given else "int_uniform")
    if form not in list(_KEYS):
        raise InputError(f"a grid has no distribution {form!r}: {_EXPECTED}; for others use `wandb sweep`")
    if unknown := [str(key) for key in described if key not in ("distribution", *_KEYS[form])]:
        raise InputError(f"{', '.join(unknown)} has no meaning here, expected {', '.join(_KEYS[form])}")
    if missing := [key for key in _KEYS[form] if key not in described]:
        raise InputError(f"{' and '.join(missing)} missing: {_EXPECTED}")
    return form


def _listed(values: Any) -> Sequence[Any]:
    if not isinstance(values, list) or not values:
        raise InputError(f"values is {values!r}, expected a list with at least one value")
    if twice := [value for value, times in Counter(map(repr, values)).items() if times > 1]:
        raise InputError(f"values holds {', '.join(twice)} more than once: give each value once")
    return values


def _whole_numbers(least: Any, most: Any) -> Sequence[int]:
    for key, bound in (("min", least), ("max", most)):
        if not _is_whole(bound):
            raise InputError(f"{key} is {bound!r}: {_EXPECTED}")
    if (count := most - least + 1) < 1:
        raise InputError(f"no value between min {least} and max {most}")
    if count > _MOST_VALUES:
        raise InputError(f"a grid over {count} values is too large: give values")
    return range(least, most + 1)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
