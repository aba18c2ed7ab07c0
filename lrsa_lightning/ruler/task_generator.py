"""What a kind of RULER task is: it draws a sample of any size."""

from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draws:
    """Where a sample's randomness comes from.

    Attributes:
        rng: of everything drawn.
        item: number of the question, for tasks that have a list of them.
        fixed_order: seed of all orders, as in the official code, where every sample has the same; None draws them.
    """

    rng: Random
    item: int = 0
    fixed_order: int | None = None

    def shuffled(self, items: list[Item]) -> list[Item]:
        """The items in a random order, or in the official one."""
        items = list(items)
        (self.rng if self.fixed_order is None else Random(self.fixed_order)).shuffle(items)
        return items


@dataclass(frozen=True)
class Text:
    """A drawn sample, without a chat template.

    Attributes:
        user: the user's turn.
        answer_prefix: start of the answer, given to the model.
        outputs: the expected strings.
        answer: what a model that knows them writes behind the prefix, in the style of the task's example.
        depths: where each output lies in the context, 0 the start and 1 the end; empty where that has no meaning.
        example: user's turn and answer of a turn in front.
    """

    user: str
    answer_prefix: str
    outputs: list[str]
    answer: str
    depths: list[float] = field(default_factory=list)
    example: tuple[str, str] | None = None


class TooFewUnits(ValueError):
    """A sample cannot be that small."""


@dataclass(frozen=True)
class OfficialSteps:
    """How the official code sizes a task's samples.

    Attributes:
        step: units added and taken away at a time.
        probe: units of the prompt from which the tokens of a unit are estimated.
        most: the bisection's upper bound over the units that the estimate allows; None: no bisection, units grow from
            those of the probe by steps.
        beside: tokens of the probe that the estimate leaves out.
    """

    step: int
    probe: int
    most: int | None = 3
    beside: int = 0


class TaskGenerator(Protocol):
    """Draws samples whose length grows with a number of units: noise lines, essay words, documents, ..."""

    min_units: int
    """Fewer do not make a sample."""

    max_units: int | None
    """More there are not; None: no limit."""

    def items(self) -> range | list[int] | None:
        """Numbers of the questions there are, in the order they are to be asked; None: any number, all alike."""

    def official_steps(self) -> OfficialSteps:
        """The official code's search for the number of units."""

    def generate(self, draws: Draws, units: int) -> Text:
        """A sample of so many units.

        Raises:
            TooFewUnits: the sample needs more.
        """


def enumeration(items: list[str]) -> str:
    """``a``, ``a, and b``, ``a, b, and c``: RULER's way of listing."""
    return ", ".join(items[:-1]) + f", and {items[-1]}" if len(items) > 1 else items[0]


def numbered(words: list[str]) -> str:
    """``1. a 2. b``."""
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))
