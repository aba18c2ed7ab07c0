"""Extends samples that are short of the target length with paragraphs of longer ones (paper, section 4.1).

The paragraphs become new sections before the sample's own text, so that its question stays last.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from random import Random

from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.tokenization import LongTokenizer

# A new section has at least this many tokens of text; below it, the previous section goes on instead.
_SHORTEST = 16
# Draws in a row of paragraphs already taken, or of the sample's own document, after which the drawing ends.
_MAX_MISSES = 64


class Extender:
    """Draws sections from a pool of samples. A sample's sections depend on the pool, the seed and its id alone."""

    def __init__(self, pool: Sequence[Sample], delimiter: str, seed: int):
        """
        Args:
            pool: samples whose paragraphs are drawn, for samples of the same language.
            delimiter: the word that opens a section, followed by its number.
            seed: seed of the draws.
        """
        self._groups = {language: _Group(pool, language) for language in {sample.language for sample in pool}}
        self._delimiter = delimiter
        self._seed = seed

    def sections(self, sample: Sample, budget: int, tokenize: LongTokenizer) -> list[int]:
        """Token ids of sections that together fill ``budget``; the last section is cut to fit.

        They fill less where no section fits, or where the pool has too little other text.

        Args:
            sample: the sample to extend; sections come neither from it nor from samples with the same document.
            budget: tokens to fill.
            tokenize: text -> token ids.
        """
        group = self._groups.get(sample.language)
        if group is None:
            return []
        ids: list[int] = []
        end = tokenize("\n\n")
        for number, paragraph in enumerate(group.draw(sample, Random(f"{self._seed}:{sample.id}")), start=1):
            opening = tokenize(f"{self._delimiter} {number}:\n")
            room = budget - len(ids)
            if room < len(opening) + _SHORTEST + len(end):
                if ids:  # the last section goes on
                    ids += tokenize.first(paragraph, room - len(end)) + end[:room]
                break
            ids += opening + tokenize.first(paragraph, room - len(opening) - len(end)) + end
        return ids


class _Group:
    """The paragraphs of one language, in the order of their documents' lengths."""

    def __init__(self, pool: Sequence[Sample], language: str):
        samples = sorted((s for s in pool if s.language == language), key=lambda s: (len(s.document), s.id))
        self._paragraphs = [(sample, paragraph) for sample in samples for paragraph in sample.paragraphs()]
        self._lengths = [len(sample.document) for sample, _ in self._paragraphs]

    def draw(self, sample: Sample, rng: Random) -> Iterator[str]:
        """Paragraphs of longer samples, each at most once; when they are used up, paragraphs of any other sample."""
        taken: set[int] = set()
        for start in (bisect_right(self._lengths, len(sample.document)), 0):
            misses = 0
            while start < len(self._paragraphs) and misses < _MAX_MISSES:
                index = rng.randrange(start, len(self._paragraphs))
                source, paragraph = self._paragraphs[index]
                if index in taken or source.document == sample.document:
                    misses += 1
                    continue
                taken.add(index)
                misses = 0
                yield paragraph
