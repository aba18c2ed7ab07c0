"""Extends samples that are short of the target length with paragraphs of other samples (paper, section 4.1).

The paragraphs stand as new sections in front of the sample's own text, so that its question stays last.
"""

from collections.abc import Sequence
from random import Random

from lrsa_lightning.data.longalign import Sample

# Draws in a row that do not fit before a sample counts as full.
_MAX_MISSES = 16


class Extender:
    """Draws sections from a pool of samples, deterministic in (seed, sample id)."""

    def __init__(self, pool: Sequence[Sample], delimiter: str, seed: int):
        """
        Args:
            pool: samples whose paragraphs are drawn.
            delimiter: the word that opens a section, followed by its number.
            seed: of the draws.
        """
        self._paragraphs = [(sample.prompt, paragraph) for sample in pool for paragraph in sample.paragraphs()]
        self._delimiter = delimiter
        self._seed = seed

    def sections(self, sample: Sample, budget: int, count_tokens) -> list[str]:
        """Sections that together take at most ``budget`` tokens, in the order they are to stand in.

        Args:
            sample: the one to extend; nothing is drawn from it, nor from another with the same prompt.
            budget: tokens to fill.
            count_tokens: text -> its number of tokens.
        """
        rng = Random(f"{self._seed}:{sample.id}")
        sections: list[str] = []
        misses = 0
        while self._paragraphs and misses < _MAX_MISSES:
            prompt, paragraph = rng.choice(self._paragraphs)
            section = f"{self._delimiter} {len(sections) + 1}:\n{paragraph}\n\n"
            if prompt == sample.prompt or (tokens := count_tokens(section)) > budget:
                misses += 1
                continue
            sections.append(section)
            budget, misses = budget - tokens, 0
        return sections
