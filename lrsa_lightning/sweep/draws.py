"""Values of a parameter: all of them, or one drawn as W&B draws."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.sweep.parameter import Description, distribution_of, multiples, numbers_of, whole_numbers


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


# Each takes its distribution's numbers, in the order of `DISTRIBUTIONS`.
_DRAWS: dict[str, Callable[..., float]] = {
    "uniform": random.Random.uniform,
    "log_uniform_values": _log_uniform,
    "normal": random.Random.gauss,
}


def all_values(name: str, described: Description) -> Sequence[Any]:
    """The values of a grid.

    Raises:
        InputError: there is no end to them.
    """
    if "value" in described:
        return [described["value"]]
    if "values" in described:
        return described["values"]
    if distribution_of(described) != "int_uniform":
        raise InputError(f"parameter {name}: a grid needs value or values, or whole numbers from min to max")
    try:
        return whole_numbers(described)
    except InputError as error:
        raise InputError(f"parameter {name}: {error}") from error


def draw(described: Description, rng: random.Random) -> Any:
    """One value; of a distribution q_... with a whole q, and of int_uniform, a whole number."""
    if "value" in described:
        return described["value"]
    if "values" in described:
        return rng.choices(described["values"], described.get("probabilities"))[0]
    distribution, numbers = distribution_of(described), numbers_of(described)
    if distribution == "int_uniform":
        return rng.randint(int(numbers["min"]), int(numbers["max"]))
    value = _DRAWS[distribution.removeprefix("q_")](rng, *(numbers[key] for key in numbers if key != "q"))
    return _multiple(value, numbers) if "q" in numbers else value


def _multiple(value: float, numbers: dict[str, float]) -> float:
    """The nearest multiple of q, within the bounds where there are any."""
    times = round(value / numbers["q"])
    if "min" in numbers:
        within = multiples(numbers)
        times = min(max(times, within.start), within.stop - 1)
    return times * numbers["q"]
