"""The cells of a sweep: each a choice of values, with a name that is its run's."""

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.path_names import made_name
from lrsa_lightning.sweep.definition import Sweep
from lrsa_lightning.sweep.draws import all_values, draw

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
        """The run's seed, where the sweep sets it."""
        return self.parameters.get(SEED)

    @property
    def setting(self) -> str:
        """All of it but the seed."""
        return cell_name({key: value for key, value in self.parameters.items() if key != SEED})


def make_cells(sweep: Sweep, count: int | None = None, seed: int = 0) -> list[Cell]:
    """All cells of a grid, or the first ones of a random search.

    The k-th draw depends on seed and k alone: with a greater count a search goes on.

    Args:
        sweep: of `read_sweep`.
        count: greatest number of cells; the file's run_cap when None.
        seed: of the draws.

    Raises:
        InputError: a random search without a count, a count below 1, or a grid without an end.
    """
    if count is not None and count < 1:
        raise InputError(f"--count is {count}, but must be a whole number of at least 1")
    count = sweep.run_cap if count is None else count
    if sweep.method == "grid":
        values = [all_values(name, described) for name, described in sweep.parameters.items()]
        if (size := prod(map(len, values))) > _MOST_CELLS:
            raise InputError(f"the grid of sweep {sweep.name} has {size} cells: give fewer values, or method random")
        return _named([dict(zip(sweep.parameters, choice, strict=True)) for choice in product(*values)][:count])
    if count is None:
        raise InputError(f"sweep {sweep.name} draws at random: give --count, or run_cap in the file")
    choices = []
    for number in range(1, count + 1):
        rng = random.Random(f"{seed}-{number}")
        choices.append({name: draw(described, rng) for name, described in sweep.parameters.items()})
    return [Cell(_numbered(number, cell_name(choice)), choice) for number, choice in enumerate(choices, 1)]


def _named(choices: list[dict[str, Any]]) -> list[Cell]:
    """Cells by what they vary; where two have the same name, with their numbers."""
    varied = [key for key in choices[0] if len({repr(choice[key]) for choice in choices}) > 1] or list(choices[0])
    plain = [cell_name({key: choice[key] for key in varied}) for choice in choices]
    times = Counter(plain)
    names = [name if times[name] == 1 else _numbered(number, name) for number, name in enumerate(plain, 1)]
    if len(set(names)) < len(names):  # a value is called as another's numbered name
        names = [_numbered(number, name) for number, name in enumerate(plain, 1)]
    return [Cell(name, choice) for name, choice in zip(names, choices, strict=True)]


def _numbered(number: int, name: str) -> str:
    return made_name(f"{number:03d}_{name}")


def cell_name(parameters: dict[str, Any]) -> str:
    """Files by their stem, other values behind the last part of the option's name; safe as one part of a path."""
    return made_name("_".join(_part(key, value) for key, value in parameters.items()) or "all")


def _part(key: str, value: Any) -> str:
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return Path(value).stem
    short = "seed" if key == SEED else key.rsplit(".", 1)[-1]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{short}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', text).strip('-')[:60]}"
