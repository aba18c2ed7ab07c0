"""The sweep file, in W&B's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.path_names import made_name
from lrsa_lightning.sweep.parameter import grid_values
from lrsa_lightning.yaml_text import read_mapping

_GOALS = ("minimize", "maximize")
_READ = ("program", "method", "metric", "parameters", "command", "run_cap")


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
    _check_names(path, content)
    if (method := content.get("method")) != "grid":
        raise InputError(
            f"{path}: method is {method!r}, but sweep_local.py runs grids only: give method: grid, or let W&B search "
            "with wandb sweep and wandb agent"
        )
    metric, goal = _metric(path, content.get("metric"))
    return Sweep(
        made_name(path.stem),
        content["program"],
        {name: _values(path, name, described) for name, described in content["parameters"].items()},
        _command(path, content["command"]),
        metric,
        goal == "maximize",
        _run_cap(path, content.get("run_cap")),
    )


def _check_names(path: Path, content: dict[str, Any]) -> None:
    """Refuses a misspelt key, which would be ignored."""
    for key in content.keys() - _READ:
        if near := get_close_matches(str(key), _READ, 1, cutoff=0.75):
            raise InputError(f"{path}: unknown key {key!r}; did you mean {near[0]}?")


def _metric(path: Path, metric: Any) -> tuple[str | None, str]:
    """Name and goal; as in W&B, the default goal is to minimize."""
    if metric is None:
        return None, "minimize"
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or not metric["name"]:
        raise InputError(f"{path}: metric is {metric!r}, expected its name and its goal")
    if (goal := metric.get("goal", "minimize")) not in _GOALS:
        raise InputError(f"{path}: the metric's goal is {goal!r}, expected one of {', '.join(_GOALS)}")
    return metric["name"], goal


def _command(path: Path, command: list[Any]) -> list[str]:
    for word in command:
        if not isinstance(word, str | int | float):
            raise InputError(f"{path}: the command holds {word!r}, expected words and macros")
    if "${args}" not in command:
        raise InputError(f"{path}: the command lacks ${{args}}, which passes the values of a cell to it")
    return [str(word) for word in command]


def _run_cap(path: Path, run_cap: Any) -> int | None:
    if run_cap is None or (isinstance(run_cap, int) and not isinstance(run_cap, bool) and run_cap > 0):
        return run_cap
    raise InputError(f"{path}: run_cap is {run_cap!r}, expected a whole number of at least 1")


def _values(path: Path, name: Any, described: Any) -> Sequence[Any]:
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: parameter {name!r}: expected the name of an option")
    try:
        return grid_values(described)
    except InputError as error:
        raise InputError(f"{path}: parameter {name}: {error}") from error
