"""The sweep file, in W&B's format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.yaml_text import read_mapping

METHODS = ("grid", "random")


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        name: of the file.
        program: what ${program} stands for.
        method: grid or random.
        parameters: W&B's description of each, by option.
        command: words and macros.
        metric: its name; None without one.
        maximize: whether more of it is better.
        run_cap: greatest number of runs; None without one.
    """

    name: str
    program: str
    method: str
    parameters: dict[str, dict[str, Any]]
    command: list[str]
    metric: str | None
    maximize: bool
    run_cap: int | None


def read_sweep(path: Path, method: str | None = None) -> Sweep:
    """Reads a sweep file.

    Args:
        path: of the YAML.
        method: instead of the file's.

    Raises:
        InputError: it is not there, lacks a part, or needs W&B's server.
    """
    content = read_mapping(path, "a sweep file, as configs/sweeps/*.yaml")
    for key, kind in (("program", str), ("parameters", dict), ("command", list)):
        if not isinstance(content.get(key), kind) or not content[key]:
            raise InputError(f"{path} has no {key!r}: give program, method, parameters and command as W&B's sweeps do")
    method = method or content.get("method")
    if method not in METHODS:
        raise InputError(
            f"{path}: method {method!r} needs W&B's server, which sweep_local.py does without: give --method random, "
            "or run wandb sweep and wandb agent"
        )
    if "${args}" not in content["command"]:
        raise InputError(f"{path}: the command lacks ${{args}}, through which the cells' values reach it")
    metric = content.get("metric") or {}
    return Sweep(
        path.stem,
        content["program"],
        method,
        {name: _described(path, name, value) for name, value in content["parameters"].items()},
        [str(word) for word in content["command"]],
        metric.get("name"),
        metric.get("goal") == "maximize",
        content.get("run_cap"),
    )


def _described(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "parameters" in value:
        raise InputError(
            f"{path}: parameter {name}: expected value, values or a distribution; for nested values name the option in "
            "full, as model.lr, or sweep over files"
        )
    return value
