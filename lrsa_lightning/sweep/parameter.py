"""The values of one parameter of a grid, as a sweep file describes them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lrsa_lightning.errors import InputError

# W&B's names for the forms that a grid can have, with the keys of each.
_KEYS = {"constant": ["value"], "categorical": ["values"], "int_uniform": ["min", "max"]}
_MOST_VALUES = 10_000
_EXPECTED = "expected value, values, or whole numbers as min and max"


def grid_values(described: Any) -> Sequence[Any]:
    """All values of a parameter.

    Raises:
        InputError: says what is wrong, without the parameter's name.
    """
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
    if form == "int_uniform":
        return _whole_numbers(described)
    return [described["value"]] if form == "constant" else _listed(described["values"])


def _listed(values: Any) -> Sequence[Any]:
    if not isinstance(values, list) or not values:
        raise InputError(f"values is {values!r}, expected a list with at least one value")
    if twice := [value for value, times in Counter(map(repr, values)).items() if times > 1]:
        raise InputError(f"values holds {', '.join(twice)} more than once: give each value once")
    return values


def _whole_numbers(described: dict[str, Any]) -> Sequence[int]:
    for key in ("min", "max"):
        bound = described[key]
        if not isinstance(bound, int) or isinstance(bound, bool):
            raise InputError(f"{key} is {bound!r}: {_EXPECTED}")
    values = range(described["min"], described["max"] + 1)
    if not values:
        raise InputError(f"no value between min {described['min']} and max {described['max']}")
    if values.stop - values.start > _MOST_VALUES:
        raise InputError(f"a grid over {values.stop - values.start} values is too large: give values")
    return values
