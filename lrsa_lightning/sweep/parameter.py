"""Whether a parameter of a sweep file describes values, before any cell is made of it."""

from collections import Counter
from math import ceil, floor, isclose, isfinite
from typing import Any

from lrsa_lightning.errors import InputError

Description = dict[str, Any]

# The keys each distribution has, as W&B names them; those of _OPTIONAL may be left out.
DISTRIBUTIONS = {
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
}
DISTRIBUTIONS |= {f"q_{name}": (*keys, "q") for name, keys in DISTRIBUTIONS.items() if name != "int_uniform"}
_OPTIONAL = {"mu": 0.0, "sigma": 1.0, "q": 1}
# W&B's names for a value and for values.
_NAMED_LISTS = {"constant": "value", "categorical": "values", "categorical_w_probabilities": "values"}
_MOST_VALUES = 10_000
_ROUNDING = 1e-9


def check_parameter(described: Any) -> None:
    """Refuses a description that has no values, or says more than one thing.

    Raises:
        InputError: says what is wrong, without the parameter's name.
    """
    if not isinstance(described, dict) or "parameters" in described:
        raise InputError(
            "expected value, values or a distribution; for nested values name the option in full, as model.lr, or "
            "sweep over files"
        )
    kinds = [key for key in ("value", "values") if key in described]
    if len(kinds) == 2:
        raise InputError("value and values contradict each other: give one")
    if not kinds:
        numbers_of(described)
        return
    (kind,) = kinds
    _check_keys(described, {kind, "distribution"} | ({"probabilities"} if kind == "values" else set()))
    named = described.get("distribution")
    if named is not None and _NAMED_LISTS.get(named) != kind:
        raise InputError(f"distribution {named!r} has no {kind}")
    if kind == "values":
        _check_values(described["values"], described.get("probabilities"))


def _check_keys(described: Description, known: set[str]) -> None:
    if unknown := [str(key) for key in described if key not in known]:
        raise InputError(f"{', '.join(unknown)} has no meaning here, expected {', '.join(sorted(known))}")


def _check_values(values: Any, probabilities: Any) -> None:
    if not isinstance(values, list) or not values:
        raise InputError(f"values is {values!r}, expected a list of one value at least")
    twice = [value for value, times in Counter(map(repr, values)).items() if times > 1]
    if twice:
        raise InputError(f"values holds {', '.join(twice)} more than once: give each value once, or probabilities")
    if probabilities is None:
        return
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        raise InputError(f"probabilities is {probabilities!r}, expected a list of {len(values)} numbers, one a value")
    for probability in probabilities:
        if not _is_number(probability) or not 0 <= probability <= 1:
            raise InputError(f"probabilities holds {probability!r}, expected numbers from 0 to 1")
    if not isclose(total := sum(probabilities), 1, abs_tol=1e-6):
        raise InputError(f"probabilities sum to {total:g}, expected 1")


def distribution_of(described: Description) -> str:
    """The one named, or what W&B takes for min and max: int_uniform between whole numbers, else uniform."""
    bounds = [described.get("min"), described.get("max")]
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
    return described.get("distribution") or ("int_uniform" if whole else "uniform")


def numbers_of(described: Description) -> dict[str, float]:
    """The numbers of a distribution, by key.

    Raises:
        InputError: it is unknown, a number is missing or none, or no value lies where they say.
    """
    name = distribution_of(described)
    if name not in DISTRIBUTIONS:
        known = ", ".join(["value", "values", *DISTRIBUTIONS])
        raise InputError(f"distribution {name!r} is not one of {known}")
    keys = DISTRIBUTIONS[name]
    _check_keys(described, {"distribution", *keys})
    found = {key: described.get(key, _OPTIONAL.get(key)) for key in keys}
    for key, value in found.items():
        if not _is_number(value):
            raise InputError(f"{key} is {value!r}, expected a number (1e-5 is text in YAML: 1.0e-5)")
    for key in ("sigma", "q"):
        if key in found and found[key] <= 0:
            raise InputError(f"{key} is {found[key]!r}, expected a number above 0")
    if "min" in found:
        _check_bounds(name, found)
    return found


def _check_bounds(name: str, found: dict[str, float]) -> None:
    low, high = found["min"], found["max"]
    if low > high or ("log" in name and low <= 0):
        above = " above 0" if "log" in name else ""
        raise InputError(f"no value{above} lies between min {low} and max {high}")
    if name == "int_uniform" and not (float(low).is_integer() and float(high).is_integer()):
        raise InputError(f"int_uniform between {low} and {high}: expected whole numbers")
    if "q" in found and not multiples(found):
        raise InputError(f"no multiple of q {found['q']} lies between min {low} and max {high}")


def multiples(numbers: dict[str, float]) -> range:
    """The whole numbers whose multiples of q lie between min and max, both included however they round."""
    low, high = (numbers[key] / numbers["q"] for key in ("min", "max"))
    return range(ceil(low - _ROUNDING), floor(high + _ROUNDING) + 1)


def whole_numbers(described: Description) -> range:
    """Those of an int_uniform.

    Raises:
        InputError: there are too many for a grid.
    """
    numbers = numbers_of(described)
    values = range(int(numbers["min"]), int(numbers["max"]) + 1)
    if values.stop - values.start > _MOST_VALUES:
        raise InputError(f"a grid over {values.stop - values.start} values has no end: give values, or method random")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
