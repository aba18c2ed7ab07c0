"""How the tokens of a sequence are distributed over the ranks of a group: arithmetic, no tensors of data."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lrsa_lightning.attention.rule import LagRule


@dataclass(frozen=True)
class Segment:
    """A contiguous part of a sequence, complete chunks, on one rank. Positions are tokens of the sequence.

    Attributes:
        index: of the segment in the order of the sequence.
        rank: which holds it.
        chunks: its complete chunks; none where it is the tail alone.
        start, stop: its tokens; the first segment begins with the sink, the last one ends with the tail.
        scored: its chunks whose next chunk is complete, so that they are compressed.
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
    """Complete chunks distributed over P ranks, an early and a late segment on each, so that all work equally long.

    A query's cost grows with its position. With one segment a rank, the last rank would work up to twice the mean.

    Attributes:
        num_tokens: N, of the sequence.
        rule: its sizes; all layers have the same chunks.
        size: P.
        zigzag: False gives each rank one segment.
    """

    num_tokens: int
    rule: LagRule
    size: int
    zigzag: bool = True

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order of the sequence."""
        sink, lag, chunks = self.rule.sink_size, self.rule.lag_size, self._num_chunks
        counts = self._chunk_counts()
        found, first = [], 0
        for index, (rank, count) in enumerate(counts):
            own = range(first, min(first + count, chunks))
            start = 0 if first == 0 else sink + first * lag
            stop = self.num_tokens if index == len(counts) - 1 else sink + own.stop * lag
            scored = min(own.stop, chunks - 1) - min(first, chunks - 1)
            found.append(Segment(index, rank, own, start, stop, scored))
            first += count
        return tuple(found)

    @property
    def _num_chunks(self) -> int:
        return self.rule.complete_chunks(self.num_tokens)

    def _chunk_counts(self) -> list[tuple[int, int]]:
        """Rank and number of chunks of each segment, in order; in a zig-zag the tail counts as one."""
        ranks = [*range(self.size), *(reversed(range(self.size)) if self.zigzag else ())]
        has_tail = self.num_tokens > self.rule.sink_size + self._num_chunks * self.rule.lag_size
        least, more = divmod(self._num_chunks + (self.zigzag and has_tail), len(ranks))
        # The remainder goes to the cheapest segments, the early ones, then to the latest ones of all.
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
        return (self.rule.sink_size if segment.index == 0 else 0) + kept * segment.scored

    def before(self, segment: Segment) -> Segment | None:
        """The segment whose last chunk this one's first queries see; none before the first."""
        return self.segments[segment.index - 1] if segment.index else None

    def after(self, segment: Segment) -> Segment | None:
        """The segment whose first chunk ranks this one's last chunk; none after the last."""
        return self.segments[segment.index + 1] if segment.index + 1 < len(self.segments) else None
