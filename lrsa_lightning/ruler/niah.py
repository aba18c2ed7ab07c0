"""Needle in a haystack: RULER's niah tasks (scripts/data/synthetic/niah.py, constants.py)."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from lrsa_lightning.ruler.words import random_number, random_words

_TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text?"
)
_ANSWER_PREFIX = " The special magic {type} for {query} mentioned in the provided text are"
_NEEDLE = "One of the special magic {type} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Draw:
    """A sample before its haystack has a size.

    Attributes:
        build: number of haystack units -> task text.
        answer_prefix: start of the answer, given to the model.
        outputs: the expected strings.
        depths: where the queried needles lie, 0 the start, 1 the end.
    """

    build: Callable[[int], str]
    answer_prefix: str
    outputs: list[str]
    depths: list[float]


@dataclass(frozen=True)
class Niah:
    """One needle among lines of noise, or among lines that are needles themselves."""

    haystack: Literal["noise", "needle"]
    tokens_per_unit: float = 22.0

    def draw(self, rng: Random) -> Draw:
        """Draws key, value and place from ``rng``, so that a sample depends on nothing but its seed."""
        key, value = random_words(rng), random_number(rng)
        depth = rng.random()
        needle = _needle(key, value)
        haystack_seed = rng.getrandbits(64)
        template, prefix = (_singular(text).format for text in (_TEMPLATE, _ANSWER_PREFIX))

        def build(units: int) -> str:
            lines = self._haystack(units, haystack_seed, key)
            lines.insert(int(depth * units), needle)
            return template(type="number", query=key, context="\n".join(lines))

        return Draw(build, prefix(type="number", query=key), [value], [depth])

    def _haystack(self, units: int, seed: int, key: str) -> list[str]:
        if self.haystack == "noise":
            return [NOISE] * units
        rng = Random(seed)
        lines = []
        while len(lines) < units:
            if (other := random_words(rng)) != key:
                lines.append(_needle(other, random_number(rng)))
        return lines


def _needle(key: str, value: str) -> str:
    return _NEEDLE.format(type="numbers", key=key, value=value)


def _singular(text: str) -> str:
    """RULER's edit for a single answer, applied to the task's own text only."""
    for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(plural, singular)
    return text
