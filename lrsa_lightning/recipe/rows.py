"""A training row, and what draws one of any length."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.ruler.fitting import largest_fit

# A row in the format `anti_haystack`: document, question, answer.
Row: TypeAlias = dict[str, str]
# Of the length: a fuller row is not worth another tokenisation.
_ENOUGH = 0.97
_FIRST_GUESS = 16
_NO_LIMIT = 2**31


class Draw(ABC):
    """One drawn row, whose length grows with a number of units: documents, sentences, lines.

    Attributes:
        max_units: the most units that there are; None: no limit.
    """

    max_units: int | None = None

    @abstractmethod
    def row(self, units: int) -> Row:
        """The row of so many units; the same each time."""


@dataclass(frozen=True)
class Fitter:
    """Makes rows as long as they may be.

    Attributes:
        encode: counts the tokens as training does.
        length: tokens of a training row.
    """

    encode: SampleEncoder
    length: int

    @classmethod
    def of(cls, tokenizer, template: TemplateName, length: int) -> "Fitter":
        """Raises an InputError if the tokenizer has no such template."""
        return cls(SampleEncoder(tokenizer, make_template(template, tokenizer), _NO_LIMIT, None), length)

    def count(self, row: Row) -> int:
        """Input tokens of a row in training."""
        sample = Sample("", row["document"].rstrip() + "\n\n", row["question"], row["answer"])
        return len(self.encode(sample).ids) - 1  # the last one is a label only

    def fits(self, draw: Draw) -> bool:
        """Whether a row without further units is short enough."""
        return self.count(draw.row(0)) <= self.length

    def fill(self, draw: Draw) -> tuple[Row, int]:
        """The longest row, or one that is long enough, and its tokens.

        Raises:
            DoesNotFit: the row without further units is too long.
        """
        found = largest_fit(draw.row, self.count, self.length, _FIRST_GUESS, most=draw.max_units, enough=_ENOUGH)
        return found.prompt, found.tokens


def seeded(*place: object) -> Random:
    """The randomness of one row, by its place in the recipe."""
    return Random(":".join(map(str, place)))
