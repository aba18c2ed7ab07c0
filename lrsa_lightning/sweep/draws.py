"""Values of a parameter: all of them, or one drawn as W&B draws."""

import math
import random
from collections.abc import Callable
from typing import Any

from lrsa_lightning.errors import InputError

Description = dict[str, Any]


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return rng.uniform(low, high)


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _normal(rng: random.Random, mu: float = 0.0, sigma: float = 1.0) -> float:
    return rng.gauss(mu, sigma)


# Each takes the keys of its description, as W&B names them.
_DRAWS: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "uniform": (_uniform, ("min", "max")),
    "log_uniform_values": (_log_uniform, ("min", "max")),
    "normal": (_normal, ("mu", "sigma")),
}
_OPTIONAL = {"mu": 0.0, "sigma": 1.0, "q": 1}


def all_values(name: str, described: Description) -> list[Any]:
    """The values of a grid.

    Raises:
        InputError: there is no end to them.
    """
    if "value" in described:
        return [described["value"]]
    if described.get("values"):
        return list(described["values"])
    if distribution_of(described) == "int_uniform":
        low, high = _numbers(name, described, ("min", "max"))
        return list(range(int(low), int(high) + 1))
    raise InputError(f"parameter {name}: a grid needs value or values, or whole numbers from min to max")


def draw(name: str, described: Description, rng: random.Random) -> Any:
    """One value; of a distribution q_... with a whole q, and of int_uniform, a whole number.

    Raises:
        InputError: an unknown distribution, or numbers that it needs are missing.
    """
    if "value" in described:
        return described["value"]
    if "values" in described:
        return rng.choices(described["values"], described.get("probabilities"))[0]
    distribution = distribution_of(described)
    if distribution == "int_uniform":
        low, high = _numbers(name, described, ("min", "max"))
        return rng.randint(int(low), int(high))
    draws, keys = _DRAWS.get(distribution.removeprefix("q_"), (None, ()))
    if draws is None:
        known = ", ".join(["value", "values", "int_uniform", *_DRAWS, *(f"q_{one}" for one in _DRAWS)])
        raise InputError(f"parameter {name}: distribution {distribution!r} is not one of {known}")
    value = draws(rng, *_numbers(name, described, keys))
    if not distribution.startswith("q_"):
        return value
    (q,) = _numbers(name, described, ("q",))
    return round(value / q) * q


def distribution_of(described: Description) -> str:
    """The one named, or what W&B takes for min and max: int_uniform between whole numbers, else uniform."""
    bounds = [described.get("min"), described.get("max")]
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
    return described.get("distribution") or ("int_uniform" if whole else "uniform")


def _numbers(name: str, described: Description, keys: tuple[str, ...]) -> list[float]:
    found = [described.get(key, _OPTIONAL.get(key)) for key in keys]
    for key, value in zip(keys, found, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"parameter {name}: {key} is {value!r}, expected a number (1e-5 is text in YAML: 1.0e-5)")
    if keys == ("min", "max") and (found[0] > found[1] or ("log" in distribution_of(described) and found[0] <= 0)):
        raise InputError(f"parameter {name}: no value lies between min {found[0]} and max {found[1]}")
    return found
