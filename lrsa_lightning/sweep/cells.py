"""The cells of a sweep: each is one choice of values, and its name is the name of its run."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.path_names import made_name
from lrsa_lightning.sweep.definition import Sweep

SEED = "seed_everything"
_MOST_CELLS = 10_000


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its run directory.
        parameters: option and value.
    """

    name: str
    parameters: dict[str, Any]

    @property
    def seed(self) -> Any:
        """The run's seed; None where the sweep does not set it."""
        return self.parameters.get(SEED)

    @property
    def setting(self) -> str:
        """The name of all values but the seed."""
        return cell_name({key: value for key, value in self.parameters.items() if key != SEED})


def make_cells(sweep: Sweep, count: int | None = None) -> list[Cell]:
    """The first cells of a grid, or all of them.

    Args:
        sweep: of `read_sweep`.
        count: greatest number of cells; the file's run_cap when None.

    Raises:
        InputError: the count is below 1, or the grid is too large.
    """
    if count is not None and count < 1:
        raise InputError(f"--count is {count}, but must be a whole number of at least 1")
    if (size := prod(map(len, sweep.parameters.values()))) > _MOST_CELLS:
        raise InputError(f"the grid of sweep {sweep.name} has {size} cells: give fewer values")
    choices = islice(product(*sweep.parameters.values()), count or sweep.run_cap)
    return _named([dict(zip(sweep.parameters, choice, strict=True)) for choice in choices])


def _named(choices: list[dict[str, Any]]) -> list[Cell]:
    """Names cells by the values that vary; equal names get numbers."""
    varied = [key for key in choices[0] if len({repr(choice[key]) for choice in choices}) > 1] or list(choices[0])
    plain = [cell_name({key: choice[key] for key in varied}) for choice in choices]
    times = Counter(plain)
    numbered = [made_name(f"{number:03d}_{name}") for number, name in enumerate(plain, 1)]
    names = [name if times[name] == 1 else other for name, other in zip(plain, numbered, strict=True)]
    if len(set(names)) < len(names):  # one value looks like the numbered name of another
        names = numbered
    return [Cell(name, choice) for name, choice in zip(names, choices, strict=True)]


def cell_name(parameters: dict[str, Any]) -> str:
    """Stems of files, and other values after the last part of their option; safe as one part of a path."""
    return made_name("_".join(_part(key, value) for key, value in parameters.items()) or "all")


def _part(key: str, value: Any) -> str:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return Path(value).stem
    short = "seed" if key == SEED else key.rsplit(".", 1)[-1]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{short}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', text).strip('-')[:60]}"
