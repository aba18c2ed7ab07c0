"""How the tokens of a sequence are dealt to the ranks that share it: arithmetic, no tensors of data."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lrsa_lightning.attention.lagkv import Chunking


@dataclass(frozen=True)
class Segment:
    """A stretch of whole chunks that lies on one rank. Positions are tokens of the sequence.

    Attributes:
        index: its place among the segments, in the order of the sequence.
        rank: where it lies.
        chunks: its complete chunks; none where it is the tail alone.
        start, stop: its tokens; the first segment's begin with the sink, the last one's end with the tail.
        scored: its chunks that a complete chunk follows, so that they are compressed.
    """

    index: int
    rank: int
    chunks: range
    start: int
    stop: int
    scored: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ContextLayout:
    """Whole chunks dealt to P ranks, each an early and a late segment, so that all have as much to attend to.

    A query's cost grows with its position: with one segment a rank the last rank would work up to twice the mean.

    Attributes:
        num_tokens: N, of the sequence.
        chunking: the rule's sizes.
        size: P.
        zigzag: False deals one segment a rank.
    """

    num_tokens: int
    chunking: Chunking
    size: int
    zigzag: bool = True

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order of the sequence."""
        sink, lag, chunks = self.chunking.sink_size, self.chunking.lag_size, self._num_chunks
        dealt = self._dealt()
        found, first = [], 0
        for index, (rank, count) in enumerate(dealt):
            own = range(first, min(first + count, chunks))
            start = 0 if first == 0 else sink + first * lag
            stop = self.num_tokens if index == len(dealt) - 1 else sink + own.stop * lag
            scored = min(own.stop, chunks - 1) - min(first, chunks - 1)
            found.append(Segment(index, rank, own, start, stop, scored))
            first += count
        return tuple(found)

    @property
    def _num_chunks(self) -> int:
        return self.chunking.complete_chunks(self.num_tokens)

    def _dealt(self) -> list[tuple[int, int]]:
        """Ranks and chunk counts of the segments, in the order of the sequence; in a zig-zag the tail counts as one."""
        ranks = [*range(self.size), *(reversed(range(self.size)) if self.zigzag else ())]
        has_tail = self.num_tokens > self.chunking.sink_size + self._num_chunks * self.chunking.lag_size
        least, more = divmod(self._num_chunks + (self.zigzag and has_tail), len(ranks))
        # What does not divide goes to the cheapest, the early segments, then to the latest ones of all.
        order = [*range(self.size), *reversed(range(self.size, len(ranks)))]
        counts = [least] * len(ranks)
        for index in order[:more]:
            counts[index] += 1
        return [(rank, count) for rank, count in zip(ranks, counts, strict=True) if count]

    @property
    def waves(self) -> tuple[tuple[Segment, ...], ...]:
        """The early segments, one on each rank, and the late ones, at most one on each."""
        waves = self.segments[: self.size], self.segments[self.size :]
        return tuple(wave for wave in waves if wave)

    def of_rank(self, rank: int) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.rank == rank)

    def positions(self, rank: int) -> Tensor:
        """Positions of a rank's tokens, int64 [n], ascending."""
        return torch.cat([torch.arange(segment.start, segment.stop, device="cpu") for segment in self.of_rank(rank)])

    def compact_len(self, segment: Segment, kept: int) -> int:
        """Compact keys that come from a segment: the sink with the first, and what its chunks keep."""
        return (self.chunking.sink_size if segment.index == 0 else 0) + kept * segment.scored

    def before(self, segment: Segment) -> Segment | None:
        """The segment whose last chunk this one's first queries see; none before the first."""
        return self.segments[segment.index - 1] if segment.index else None

    def behind(self, segment: Segment) -> Segment | None:
        """The segment whose first chunk ranks this one's last; none behind the last."""
        return self.segments[segment.index + 1] if segment.index + 1 < len(self.segments) else None
