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
        self._paragraphs: dict[str, list[tuple[Sample, str]]] = {}
        for sample in sorted(pool, key=lambda sample: (len(sample.document), sample.id)):
            self._paragraphs.setdefault(sample.language, []).extend((sample, text) for text in sample.paragraphs())
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
        ids: list[int] = []
        end = tokenize("\n\n")
        for number, paragraph in enumerate(self._draw(sample), start=1):
            opening = tokenize(f"{self._delimiter} {number}:\n")
            room = budget - len(ids)
            if room < len(opening) + _SHORTEST + len(end):
                if ids:  # the last section goes on
                    ids += tokenize.first(paragraph, room - len(end)) + end[:room]
                break
            ids += opening + tokenize.first(paragraph, room - len(opening) - len(end)) + end
        return ids

    def _draw(self, sample: Sample) -> Iterator[str]:
        """Paragraphs of longer samples, each at most once; when they are used up, paragraphs of any other sample."""
        rng = Random(f"{self._seed}:{sample.id}")
        paragraphs = self._paragraphs.get(sample.language, [])
        taken: set[int] = set()
        for start in (bisect_right(paragraphs, len(sample.document), key=lambda pair: len(pair[0].document)), 0):
            misses = 0
            while start < len(paragraphs) and misses < _MAX_MISSES:
                index = rng.randrange(start, len(paragraphs))
                source, paragraph = paragraphs[index]
                if index in taken or source.document == sample.document:
                    misses += 1
                    continue
                taken.add(index)
                misses = 0
                yield paragraph
