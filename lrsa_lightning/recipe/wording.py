"""What the needles of training rows say, and how they are asked for, in none of RULER's words for needles."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lrsa_lightning.haystack import word_list

_THINGS = (
    *("locker number", "tracking code", "serial number", "invoice number", "access code", "customer number"),
    *("shelf mark", "registration", "membership number", "batch code", "case number", "password"),
)
_STATEMENTS = (
    "The {thing} of {key} is {value}.",
    "{key} has the {thing} {value}.",
    "Note that {value} is the {thing} of {key}.",
    "For {key}, the {thing} was set to {value}.",
    "According to the register, the {thing} of {key} reads {value}.",
    "Anyone who asks for {key} needs the {thing} {value}.",
)
_RECORDS = ("{key}: {value}", "{key} -> {value}", "{key} = {value}", "- {key} | {value}", "entry {key} holds {value}")
_ONE = (
    "What is the {thing} of {key}?",
    "Which {thing} does {key} have, according to the text above?",
    "Find the {thing} of {key} in the text and repeat it.",
)
_ALL = (
    "{key} has more than one {thing}. List all of them.",
    "Name every {thing} of {key} that the text gives.",
)
_EACH = (
    "Give the {thing} of each of these, in this order: {key}.",
    "Look up the {thing} of {key}, one after the other.",
)
_RECORD = (
    "Which value belongs to {key} in the list above?",
    "Look up {key} in the list and repeat what stands beside it.",
)
_ANSWERS = ("{value}", "{value}.", "It is {value}.", "The {thing} of {key} is {value}.")
# Of a haystack without a text: the same few sentences over and over.
FILLER = (
    "The bus leaves at noon. The shop opens early. The road bends left. Nothing else happens here.",
    "Rain falls on the roof. A clock ticks in the hall. The lamp is on. So it goes.",
)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Wording:
    """How one row states and asks.

    Attributes:
        thing: the name of what is asked for.
        statement: with `key` and `value` in braces.
    """

    thing: str
    statement: str

    def states(self, key: str, value: str) -> str:
        """The needle."""
        return self.statement.format(thing=self.thing, key=key, value=value)

    def asks(self, rng: Random, keys: Sequence[str], num_values: int) -> str:
        """The question for the values of some keys."""
        of_prose = _EACH if len(keys) > 1 else _ALL if num_values > 1 else _ONE
        forms = _RECORD if self.statement in _RECORDS else of_prose
        return rng.choice(forms).format(thing=self.thing, key=", ".join(keys))

    def answers(self, rng: Random, keys: Sequence[str], values: Sequence[str]) -> str:
        """The answer: the bare values, or a sentence with the value."""
        if len(values) > 1 or self.statement in _RECORDS:
            return rng.choice([", ".join(values), listed(values)])
        return rng.choice(_ANSWERS).format(thing=self.thing, key=keys[0], value=values[0])


def of_prose(rng: Random) -> Wording:
    """A wording of needles among sentences."""
    return Wording(rng.choice(_THINGS), rng.choice(_STATEMENTS))


def of_lines(rng: Random) -> Wording:
    """A wording of a list of records."""
    return Wording("value", rng.choice(_RECORDS))


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def distinct(rng: Random, count: int) -> list[str]:
    """So many distinct keys of one kind: invented names, pairs of nouns, or codes."""
    draw = rng.choice((_name, _nouns, _code))
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[draw(rng)] = None
    return list(keys)


def values(rng: Random, count: int) -> list[str]:
    """So many values of one kind: numbers, groups of hexadecimal digits, or pairs of nouns."""
    draw, size = rng.choice((_number, _number, _hexadecimal, _nouns)), rng.randint(4, 9)
    return [draw(rng, size) for _ in range(count)]


def _name(rng: Random, _: int = 0) -> str:
    return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize() for _ in range(2))


def _nouns(rng: Random, _: int = 0) -> str:
    return "_".join(rng.choices(word_list("noun"), k=2)).replace(" ", "_")


def _code(rng: Random, _: int = 0) -> str:
    return f"{''.join(rng.choices('ABCDEFGHJKLMNPRSTUVWXYZ', k=2))}-{rng.randint(1000, 99999)}"


def _number(rng: Random, size: int) -> str:
    return str(rng.randint(10 ** (size - 1), 10**size - 1))


def _hexadecimal(rng: Random, size: int) -> str:
    return "-".join(f"{rng.getrandbits(16):04x}" for _ in range(2 + size % 5))
