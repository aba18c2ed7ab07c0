"""Needle in a haystack: RULER's niah tasks (scripts/data/synthetic/niah.py, constants.py)."""

import uuid
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from lrsa_lightning.haystack import NOISE, random_number, random_words
from lrsa_lightning.ruler.sources import Essays
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text, enumeration

_ItemType = Literal["words", "numbers", "uuids"]

_TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text?"
)
_ANSWER_PREFIX = " The special magic {type} for {query} mentioned in the provided text are"
_NEEDLE = "One of the special magic {type} for {key} is: {value}."
# Places of needles in the essays, in percent: round(linspace(0, 100, 40)).
_DEPTHS = [round(100 * i / 39) for i in range(40)]


def _random_uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_RANDOM = {"words": random_words, "numbers": random_number, "uuids": _random_uuid}


class _Needle(NamedTuple):
    key: int
    value: str
    text: str


@dataclass(frozen=True)
class Niah(TaskGenerator):
    """Needles in essays, among lines of noise, or among lines that are needles themselves.

    Attributes:
        haystack: the essays, or the content of its lines.
        keys: type of the keys.
        values: type of the values.
        num_keys: keys of the needles.
        num_values: values of each key.
        num_queries: keys in the question.
    """

    haystack: Essays | Literal["noise", "needle"]
    keys: _ItemType = "words"
    values: _ItemType = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    @property
    def min_units(self) -> int:
        """Needles go before distinct lines; essays may be empty."""
        return 0 if isinstance(self.haystack, Essays) else self.num_keys * self.num_values

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are words of the essays or lines."""
        rng = draws.rng
        keys, values, needles = [], [], []
        for k in range(self.num_keys):
            keys.append(self._new_key(rng, keys))
            values.append([_RANDOM[self.values](rng) for _ in range(self.num_values)])
            needles += [_Needle(k, value, self._needle(keys[-1], value)) for value in values[-1]]
        needles = draws.shuffled(needles)
        context, places = self._hide([needle.text for needle in needles], units, rng, keys)
        depths = {(needle.key, needle.value): place for needle, place in zip(needles, places, strict=True)}
        queried = rng.sample(range(self.num_keys), self.num_queries)
        answers = [(k, value) for k in queried for value in values[k]]
        names = {"type": self.values, "query": enumeration([keys[k] for k in queried])}
        template, prefix = _TEMPLATE, _ANSWER_PREFIX
        if self.num_queries * self.num_values == 1:
            template, prefix, names["type"] = _singular(template), _singular(prefix), self.values.removesuffix("s")
        return Text(
            user=template.format(context=context, **names),
            answer_prefix=prefix.format(**names),
            outputs=[value for _, value in answers],
            depths=[depths[answer] for answer in answers],
        )

    def _new_key(self, rng: Random, taken: list[str]) -> str:
        while (key := _RANDOM[self.keys](rng)) in taken:
            pass
        return key

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(type=self.values, key=key, value=value)

    def _hide(self, needles: list[str], units: int, rng: Random, keys: list[str]) -> tuple[str, list[float]]:
        """The context, and the place of each needle in it."""
        if isinstance(self.haystack, Essays):
            return self._hide_in_essays(needles, self.haystack.sentences(units), rng)
        if self.haystack == "noise":
            lines = [NOISE] * units
        else:
            lines = [self._needle(self._new_key(rng, keys), _RANDOM[self.values](rng)) for _ in range(units)]
        # The last place comes first, so that earlier places stay valid.
        places = sorted(rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines), [place / units for place in places]

    @staticmethod
    def _hide_in_essays(needles: list[str], sentences: list[str], rng: Random) -> tuple[str, list[float]]:
        depths = sorted(rng.sample(_DEPTHS, len(needles)))
        pieces, start = [], 0
        for depth, needle in zip(depths, needles, strict=True):
            end = int(len(sentences) * (depth / 100))
            pieces += [" ".join(sentences[start:end]), needle]
            start = end
        # A needle at either end, or next to another one, keeps the space of the empty piece beside it.
        context = " ".join([*pieces, " ".join(sentences[start:])])
        return context, [depth / 100 for depth in depths]


def _singular(text: str) -> str:
    """RULER's edit of a text that asks for a single answer."""
    for plural, one in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(plural, one)
    return text
