"""Frequent words extraction (scripts/data/synthetic/freq_words_extraction.py, constants.py)."""

import math
from dataclasses import dataclass

from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text, coded_words

_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
_ANSWER_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_LETTERS = 6
_ZETA = math.pi**2 / 6  # zeta(alpha), the norm of the distribution k^-alpha for alpha = 2


@dataclass(frozen=True)
class FrequentWords(TaskGenerator):
    """Made-up words in a zeta distribution. The most frequent one is noise.

    Attributes:
        budget: tokens of a prompt.
    """

    budget: int
    min_units = 64  # with fewer the answer's third word and the next one occur equally often

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are words of the text, or a little fewer: each word's count is rounded down."""
        vocabulary = draws.shuffled(sorted(coded_words(draws.rng, max(self.budget // 50, 5), _LETTERS)))
        vocabulary[0] = "..."
        words = [word for rank, word in enumerate(vocabulary, start=1) for _ in range(int(units * rank**-2.0 / _ZETA))]
        context = " ".join(draws.shuffled(words))
        return Text(_TEMPLATE.format(context=context), _ANSWER_PREFIX, vocabulary[1:4])
