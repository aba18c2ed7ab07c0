"""Numbers that carry their range in their type: the command's parser refuses by it, and so does a class in Python."""

import inspect
import types
from collections.abc import Callable
from functools import cache, wraps
from math import inf
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveInt,
    restricted_number_type,
)

from lrsa_lightning.errors import InputError

# jsonargparse's PositiveFloat and NonNegativeFloat let infinity pass.
PositiveFiniteFloat = restricted_number_type("PositiveFiniteFloat", float, [(">", 0.0), ("<", inf)])
NonNegativeFiniteFloat = restricted_number_type("NonNegativeFiniteFloat", float, [(">=", 0.0), ("<", inf)])
FiniteFloat = restricted_number_type("FiniteFloat", float, [(">", -inf), ("<", inf)])
AtLeastTwo = restricted_number_type("AtLeastTwo", int, (">=", 2))
PositiveUnitInterval = restricted_number_type("PositiveUnitInterval", float, [(">", 0.0), ("<=", 1.0)])
# What a moving average keeps of the past: 1 would never take up anything new.
DecayRate = restricted_number_type("DecayRate", float, [(">=", 0.0), ("<", 1.0)])
# Each copy of a sample is prepared and stored.
MixtureWeight = restricted_number_type("MixtureWeight", float, [(">=", 0.0), ("<=", 1000.0)])

_RANGES = {
    PositiveInt: "a whole number of at least 1",
    AtLeastTwo: "a whole number of at least 2",
    NonNegativeInt: "a whole number of at least 0",
    PositiveFiniteFloat: "a finite number above 0",
    NonNegativeFiniteFloat: "a finite number of at least 0",
    FiniteFloat: "a finite number",
    ClosedUnitInterval: "a number from 0 to 1",
    OpenUnitInterval: "a number between 0 and 1",
    PositiveUnitInterval: "a number above 0, at most 1",
    DecayRate: "a number of at least 0 and below 1",
    MixtureWeight: "a number from 0 to 1000",
}
F = TypeVar("F", bound=Callable)

__all__ = [
    "AtLeastTwo",
    "ClosedUnitInterval",
    "DecayRate",
    "FiniteFloat",
    "MixtureWeight",
    "NonNegativeFiniteFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFiniteFloat",
    "PositiveInt",
    "PositiveUnitInterval",
    "checked",
]


def checked(init: F) -> F:
    """Decorates an ``__init__``: arguments must lie in the ranges and among the literals of their annotations.

    What the parser refuses with the key's name is then refused in Python with the argument's. Numbers reach the body as
    plain int and float, whatever type the parser gave them.

    Raises:
        InputError: an argument lies outside; names class and argument, the value, and what was expected.
    """
    signature, hints = inspect.signature(init), cache(lambda: get_type_hints(init))

    @wraps(init)
    def checking(self, *args, **kwargs):
        given = signature.bind(self, *args, **kwargs)
        for name, value in given.arguments.items():
            if name in hints():
                given.arguments[name] = _plain(value, hints()[name], f"{type(self).__name__}.{name}")
        return init(*given.args, **given.kwargs)

    return checking


def _plain(value: Any, hint: Any, name: str) -> Any:
    """The value with plain numbers in it, if the annotation allows it."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in _RANGES:
        return _number(value, hint, name)
    if origin is Literal and value not in members:
        raise InputError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, members))}")
    if origin in (Union, types.UnionType):
        return _member(value, members, name)
    if isinstance(value, list | tuple) and members:
        kinds = members if origin is tuple and Ellipsis not in members else [members[0]] * len(value)
        if len(kinds) != len(value):
            raise InputError(f"{name} is {value!r}, but must hold {len(kinds)} values")
        return type(value)(_plain(item, kind, name) for item, kind in zip(value, kinds, strict=True))
    if isinstance(value, dict) and len(members) == 2:
        return {key: _plain(item, members[1], f"{name}[{key!r}]") for key, item in value.items()}
    return value


def _number(value: Any, hint: Any, name: str) -> int | float:
    plain = float if issubclass(hint, float) else int
    try:
        if not isinstance(value, int | float):
            raise ValueError
        return plain(hint(value))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}, but must be {_RANGES[hint]}") from error


def _member(value: Any, members: tuple, name: str) -> Any:
    """Of a union, by the first member that takes the value; where none does, the first one's refusal."""
    if value is None and type(None) in members:
        return None
    refusals = []
    for member in members:
        if isinstance(member, type) and member not in _RANGES and not isinstance(value, member):
            continue
        try:
            return _plain(value, member, name)
        except InputError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    return value  # its type alone is wrong, which is the caller's to see
