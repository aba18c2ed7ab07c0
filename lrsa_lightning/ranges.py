"""Types of numbers that carry their range. The command's parser refuses by them, and so does a class in Python."""

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
    PositiveInt,
    register_type,
    restricted_number_type,
    restricted_string_type,
)

from lrsa_lightning.errors import InputError

# jsonargparse's PositiveFloat and NonNegativeFloat allow infinity.
PositiveFiniteFloat = restricted_number_type("PositiveFiniteFloat", float, [(">", 0.0), ("<", inf)])
NonNegativeFiniteFloat = restricted_number_type("NonNegativeFiniteFloat", float, [(">=", 0.0), ("<", inf)])
FiniteFloat = restricted_number_type("FiniteFloat", float, [(">", -inf), ("<", inf)])
AtLeastTwo = restricted_number_type("AtLeastTwo", int, (">=", 2))
PositiveUnitInterval = restricted_number_type("PositiveUnitInterval", float, [(">", 0.0), ("<=", 1.0)])
# The part of the past that a moving average keeps: with 1 it would never change.
DecayRate = restricted_number_type("DecayRate", float, [(">=", 0.0), ("<", 1.0)])
# Each copy of a sample is prepared and stored, so the weight is limited.
MixtureWeight = restricted_number_type("MixtureWeight", float, [(">=", 0.0), ("<=", 1000.0)])
# The limit also keeps the estimated time left within what Python can represent.
CountOrEndless = restricted_number_type("CountOrEndless", int, [(">=", -1), ("<", 2**31)])
Devices = restricted_string_type("Devices", r"(?!0$)(auto|-1|\d+(,\d+)*,?)")
Duration = restricted_string_type("Duration", r"\d+:\d+:\d+:\d+")


class CountOrFraction:
    """A whole number of things, or with a decimal point a fraction of them; constructs a plain number.

    It is not a union of two types above: jsonargparse saves a fraction by the first of them, and 0.5 as 0.
    """

    least = 0

    def __new__(cls, value: Any) -> int | float:
        number = value
        if isinstance(value, str):
            number = int(value) if value.lstrip("+-").isdigit() else float(value)
        if isinstance(number, float):
            conforms = 0 <= number <= 1 and (number or not cls.least)
        else:
            conforms = isinstance(number, int) and not isinstance(number, bool) and number >= cls.least
        if not conforms:
            raise ValueError(f"{value} does not conform")
        return number


class PositiveCountOrFraction(CountOrFraction):
    """The same, but above zero."""

    least = 1


for _kind in (CountOrFraction, PositiveCountOrFraction):
    register_type(_kind, serializer=lambda number: number, type_check=lambda *_: False)
_WORDS = {
    PositiveInt: "a whole number of at least 1",
    AtLeastTwo: "a whole number of at least 2",
    NonNegativeInt: "a whole number of at least 0",
    PositiveFiniteFloat: "a finite number above 0",
    NonNegativeFiniteFloat: "a finite number of at least 0",
    FiniteFloat: "a finite number",
    ClosedUnitInterval: "a number from 0 to 1",
    PositiveUnitInterval: "a number above 0, at most 1",
    DecayRate: "a number of at least 0 and below 1",
    MixtureWeight: "a number from 0 to 1000",
    CountOrEndless: "a whole number from -1 (no limit) to 2147483647",
    Devices: "auto, -1 for all, or numbers as in 0,1",
    Duration: "a time as days:hours:minutes:seconds",
    CountOrFraction: "a whole number of at least 0 or a fraction from 0.0 to 1.0",
    PositiveCountOrFraction: "a whole number of at least 1 or a fraction above 0.0, at most 1.0",
}
F = TypeVar("F", bound=Callable)


def checked(init: F) -> F:
    """Decorates an ``__init__`` or a function, and checks its arguments against their annotations.

    It checks ranges and literals, and requires a list where the annotation does. The parser refuses a wrong value with
    the name of the key; this refuses it in Python with the name of the argument. The body gets plain int and float,
    whatever type the parser gave.

    Raises:
        InputError: an argument is out of range; names class or function, argument, value, and what was expected.
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
    """What the type of this name accepts, in words; the name itself for any other type."""
    return next((words for kind, words in _WORDS.items() if kind.__name__ == name), name)


def is_range(kind: Any) -> bool:
    """Whether a type is one of this module's numbers."""
    return kind in _WORDS and issubclass(kind, int | float)


def option(kind: Any) -> Callable[[str], int | float]:
    """One of this module's numbers as the `type` of an argparse option; the error names the option and the range."""

    def convert(text: str) -> int | float:
        try:
            return _restricted((float if issubclass(kind, float) else int)(text), kind, "")
        except ValueError as error:
            raise ArgumentTypeError(f"is {text!r}, but must be {_WORDS[kind]}") from error

    return convert


def _plain(value: Any, hint: Any, name: str) -> Any:
    """The value with plain numbers in it, if its annotation allows it."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _restricted(value, hint, name)
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


def _restricted(value: Any, kind: Any, name: str) -> int | float | str:
    """The value as a plain number or text, if it conforms to a type of this module."""
    try:
        if is_range(kind) and not isinstance(value, Real):  # Real: numpy's numbers too
            raise ValueError
        made = kind(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}, but must be {_WORDS[kind]}") from error
    return next(plain(made) for plain in (int, float, str) if isinstance(made, plain))


def _member(value: Any, members: tuple, name: str) -> Any:
    """The value by the first member of a union that accepts it; if none does, the first member's refusal.

    Of a list, the refusal is that of a member that is a list: it names the wrong element.
    """
    if value is None and type(None) in members:
        return None
    members = [member for member in members if member is not type(None)]
    if len(members) == 1:
        return _plain(value, members[0], name)
    if isinstance(value, list | tuple):
        members.sort(key=lambda member: member in _WORDS)
    refusals = []
    for member in members:
        kind = get_origin(member) or member
        is_other = isinstance(kind, type) and kind not in _WORDS
        if is_other and not isinstance(value, (list, tuple) if kind is list else kind):
            continue
        try:
            return _plain(value, member, name)
        except InputError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    return value  # only its type is wrong, which the caller notices
