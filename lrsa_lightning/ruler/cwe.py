"""Common words extraction (scripts/data/synthetic/common_words_extraction.py, constants.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lrsa_lightning.haystack import word_list
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text, numbered

_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
_ANSWER_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
_NUM_COMMON = 10


@cache
def _word_pool() -> list[str]:
    """All nouns, adjectives and verbs, sorted."""
    return sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})


@dataclass(frozen=True)
class CommonWords(TaskGenerator):
    """A numbered list in which ten words occur often, after a worked example as a turn of its own.

    Attributes:
        max_length: tokens of a sample.
        further_words: replace the pool where a list needs more words than it has, beyond 64K tokens; may be empty.
    """

    max_length: int
    further_words: Sequence[str] = ()
    min_units = _NUM_COMMON

    @property
    def max_units(self) -> int:
        return max(len(_word_pool()), len(self.further_words))

    def generate(self, draws: Draws, units: int) -> Text:
        """Units are distinct words."""
        is_short = self.max_length < 4096
        example_list, example_words = self._word_list(draws, *((20, 3, 1) if is_short else (40, 10, 3)))
        word_list, words = self._word_list(draws, units, *((6, 1) if is_short else (30, 3)))
        example = _TEMPLATE.format(context=example_list), " " + numbered(example_words)
        return Text(_TEMPLATE.format(context=word_list), _ANSWER_PREFIX, words, example=example)

    def _word_list(self, draws: Draws, num_words: int, common: int, uncommon: int) -> tuple[str, list[str]]:
        """The list and its ten common words, which occur ``common`` times; the others occur ``uncommon`` times."""
        pool = _word_pool() if num_words <= len(_word_pool()) else self.further_words
        words = draws.rng.sample(pool, num_words)
        often, seldom = words[:_NUM_COMMON], words[_NUM_COMMON:]
        return numbered(draws.shuffled(often * common + seldom * uncommon)), often
