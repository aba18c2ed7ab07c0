"""Numbers that carry their range in their type: the command's parser refuses by it, and so does a class in Python."""

import inspect
import types
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from math import inf
from numbers import Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveInt,
    register_type,
    restricted_number_type,
    restricted_string_type,
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
# Also short of where the time left at a run's pace would pass what Python can hold.
CountOrEndless = restricted_number_type("CountOrEndless", int, [(">=", -1), ("<", 2**31)])

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
    CountOrEndless: "a whole number from -1 (no limit) to 2147483647",
}
Devices = restricted_string_type("Devices", r"(?!0$)(auto|-1|\d+(,\d+)*,?)")
Duration = restricted_string_type("Duration", r"\d+:\d+:\d+:\d+")


class CountOrShare:
    """A whole number of things, or a share of them with a decimal point; made, it is a plain number.

    No union of two types above: jsonargparse saves a share by the first of them, and 0.5 as 0.
    """

    least = 0

    def __new__(cls, value: Any) -> int | float:
        number = _read_number(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{value} does not conform")
        if not (0 <= number <= 1 and (number or not cls.least) if isinstance(number, float) else number >= cls.least):
            raise ValueError(f"{value} does not conform")
        return number


class SomeOrShare(CountOrShare):
    """The same without none of them."""

    least = 1


def _read_number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdigit() else float(text)


for _kind in (CountOrShare, SomeOrShare):
    register_type(_kind, serializer=lambda number: number, type_check=lambda *_: False)
_OTHERS = {
    Devices: "auto, -1 for all, or numbers as in 0,1",
    Duration: "a time as days:hours:minutes:seconds",
    CountOrShare: "a whole number of at least 0 or a share from 0.0 to 1.0",
    SomeOrShare: "a whole number of at least 1 or a share above 0.0, at most 1.0",
}
F = TypeVar("F", bound=Callable)

__all__ = [
    "AtLeastTwo",
    "ClosedUnitInterval",
    "CountOrEndless",
    "CountOrShare",
    "DecayRate",
    "Devices",
    "Duration",
    "FiniteFloat",
    "MixtureWeight",
    "NonNegativeFiniteFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFiniteFloat",
    "PositiveInt",
    "PositiveUnitInterval",
    "SomeOrShare",
    "checked",
    "is_range",
    "option",
    "range_of",
]


def checked(init: F) -> F:
    """Decorates an ``__init__``, or a function: arguments must lie in the ranges and among the literals of their
    annotations, and be lists where these say so.

    What the parser refuses with the key's name is then refused in Python with the argument's. Numbers reach the body as
    plain int and float, whatever type the parser gave them.

    Raises:
        InputError: an argument lies outside; names class or function and argument, the value, and what was expected.
    """
    if isinstance(init, type):  # a dataclass, whose __init__ is generated
        init.__init__ = checked(init.__init__)
        return init
    signature, hints = inspect.signature(init), cache(lambda: get_type_hints(init))

    @wraps(init)
    def checking(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        owner = type(args[0]).__name__ if "self" in signature.parameters else init.__name__
        for name, value in given.arguments.items():
            if name in hints():
                given.arguments[name] = _plain(value, hints()[name], f"{owner}.{name}")
        return init(*given.args, **given.kwargs)

    return checking


def range_of(name: str) -> str:
    """What a type of this name takes, in words; the name itself where it is none of these types."""
    return next((words for kind, words in (_RANGES | _OTHERS).items() if kind.__name__ == name), name)


def is_range(kind: Any) -> bool:
    """Whether it is one of the numbers of this module."""
    return kind in _RANGES


def option(kind: Any) -> Callable[[str], int | float]:
    """One of these types as the `type` of an argparse option, whose error then names the option and says the range.

    Args:
        kind: the type.
    """

    def convert(text: str) -> int | float:
        try:
            return _number((float if issubclass(kind, float) else int)(text), kind, "")
        except ValueError as error:
            raise ArgumentTypeError(f"is {text!r}, but must be {_RANGES[kind]}") from error

    return convert


def _plain(value: Any, hint: Any, name: str) -> Any:
    """The value with plain numbers in it, if the annotation allows it."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in _RANGES:
        return _number(value, hint, name)
    if hint in _OTHERS:
        return _other(value, hint, name)
    if origin is Literal and value not in members:
        raise InputError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, members))}")
    if origin in (Union, types.UnionType):
        return _member(value, members, name)
    if origin in (list, Sequence) and isinstance(value, str | bytes | int | float | Mapping | None):
        raise InputError(f"{name} is {value!r}, but must be a list, even of one value")
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
        if not isinstance(value, Real):  # numpy's numbers too
            raise ValueError
        return plain(hint(value))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}, but must be {_RANGES[hint]}") from error


def _other(value: Any, hint: Any, name: str) -> str | int | float:
    try:
        made = hint(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is {value!r}, but must be {_OTHERS[hint]}") from error
    return str(made) if isinstance(made, str) else made


def _member(value: Any, members: tuple, name: str) -> Any:
    """Of a union, by the first member that takes the value; where none does, the first one's refusal."""
    if value is None and type(None) in members:
        return None
    members = [member for member in members if member is not type(None)]
    if len(members) == 1:
        return _plain(value, members[0], name)
    refusals = []
    for member in members:
        kind = get_origin(member) or member
        is_plain = isinstance(kind, type) and kind not in _RANGES | _OTHERS
        if is_plain and not isinstance(value, (list, tuple) if kind is list else kind):
            continue
        try:
            return _plain(value, member, name)
        except InputError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    return value  # its type alone is wrong, which is the caller's to see
