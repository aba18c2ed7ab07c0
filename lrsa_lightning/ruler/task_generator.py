"""The interface of RULER's tasks: a task generator draws a sample of any size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from string import ascii_lowercase
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draws:
    """The randomness of one sample.

    Attributes:
        rng: of everything drawn.
        item: number of the question, for tasks with a list of questions.
    """

    rng: Random
    item: int = 0

    def shuffled(self, items: list[Item]) -> list[Item]:
        """The items in a random order."""
        items = list(items)
        self.rng.shuffle(items)
        return items


@dataclass(frozen=True)
class Text:
    """A drawn sample, without a chat template.

    Attributes:
        user: the user's turn.
        answer_prefix: start of the answer, which the model gets.
        outputs: the expected strings.
        depths: place of each output in the context, 0 the start and 1 the end; empty where outputs have no place.
        example: user's turn and answer of an earlier turn.
    """

    user: str
    answer_prefix: str
    outputs: list[str]
    depths: list[float] = field(default_factory=list)
    example: tuple[str, str] | None = None


class TaskGenerator(ABC):
    """Draws samples whose length grows with a number of units: lines of noise, words, documents.

    Attributes:
        min_units: the least units of a sample.
        max_units: the most units of a sample; None: no limit.
    """

    min_units: int = 0
    max_units: int | None = None

    def items(self) -> list[int] | None:
        """Numbers of the questions, in the order of the samples; None: any number of samples, without a list."""
        return None

    @abstractmethod
    def generate(self, draws: Draws, units: int) -> Text:
        """A sample of so many units."""


def enumeration(items: Sequence[str]) -> str:
    """``a``, ``a, and b``, ``a, b, and c``: RULER's way of listing."""
    return ", ".join(items[:-1]) + f", and {items[-1]}" if len(items) > 1 else items[0]


def coded_words(rng: Random, count: int, length: int, letters: str = ascii_lowercase) -> list[str]:
    """Distinct words of random letters, in the order drawn."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(letters, k=length))] = None
    return list(words)


def numbered(words: Sequence[str]) -> str:
    """``1. a 2. b``."""
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))
