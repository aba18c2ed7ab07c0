"""Needle in a haystack: RULER's niah tasks (scripts/data/synthetic/niah.py, constants.py)."""

from dataclasses import dataclass
from random import Random
from typing import Literal

from lrsa_lightning.haystack import NOISE
from lrsa_lightning.ruler.sources import Essays
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text, enumeration
from lrsa_lightning.ruler.words import ItemType, random_item

_TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text?"
)
_ANSWER_PREFIX = " The special magic {type} for {query} mentioned in the provided text are"
_NEEDLE = "One of the special magic {type} for {key} is: {value}."
# Places of needles in the essays, in percent: round(linspace(0, 100, 40)).
_DEPTHS = [round(100 * i / 39) for i in range(40)]


@dataclass(frozen=True)
class _Needle:
    key: int
    text: str
    value: str


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
    keys: ItemType = "words"
    values: ItemType = "numbers"
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
            values.append([random_item(rng, self.values) for _ in range(self.num_values)])
            needles += [_Needle(k, self._needle(keys[-1], value), value) for value in values[-1]]
        context, depths = self._hide(draws.shuffled(needles), units, rng, keys)
        asked = rng.sample(range(self.num_keys), self.num_queries)
        names = {"type": self.values, "query": enumeration([keys[k] for k in asked])}
        template, prefix = _TEMPLATE, _ANSWER_PREFIX
        if self.num_queries * self.num_values == 1:
            template, prefix, names["type"] = _singular(template), _singular(prefix), self.values.removesuffix("s")
        return Text(
            user=template.format(context=context, **names),
            answer_prefix=prefix.format(**names),
            outputs=[value for k in asked for value in values[k]],
            depths=[depths[k, value] for k in asked for value in values[k]],
        )

    def _new_key(self, rng: Random, taken: list[str]) -> str:
        while (key := random_item(rng, self.keys)) in taken:
            pass
        return key

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(type=self.values, key=key, value=value)

    def _hide(
        self, needles: list[_Needle], units: int, rng: Random, keys: list[str]
    ) -> tuple[str, dict[tuple[int, str], float]]:
        """The context, and the place in it of each key's values."""
        if isinstance(self.haystack, Essays):
            return self._hide_in_essays(needles, self.haystack.sentences(units), rng)
        lines = [NOISE if self.haystack == "noise" else self._other_needle(rng, keys) for _ in range(units)]
        # The last place comes first, so that earlier places stay valid.
        places = sorted(rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle.text)
        return "\n".join(lines), _depths(needles, [place / units for place in places])

    def _other_needle(self, rng: Random, keys: list[str]) -> str:
        return self._needle(self._new_key(rng, keys), random_item(rng, self.values))

    @staticmethod
    def _hide_in_essays(
        needles: list[_Needle], sentences: list[str], rng: Random
    ) -> tuple[str, dict[tuple[int, str], float]]:
        depths = sorted(rng.sample(_DEPTHS, len(needles)))
        pieces, start = [], 0
        for depth, needle in zip(depths, needles, strict=True):
            end = int(len(sentences) * (depth / 100))
            pieces += [" ".join(sentences[start:end]), needle.text]
            start = end
        # A needle at either end, or next to another one, keeps the space of the empty piece beside it.
        context = " ".join([*pieces, " ".join(sentences[start:])])
        return context, _depths(needles, [depth / 100 for depth in depths])


def _depths(needles: list[_Needle], places: list[float]) -> dict[tuple[int, str], float]:
    return {(needle.key, needle.value): place for needle, place in zip(needles, places, strict=True)}


def _singular(text: str) -> str:
    """RULER's edit of a text that asks for a single answer."""
    for plural, one in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(plural, one)
    return text
