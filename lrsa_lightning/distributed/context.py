"""LRSA context parallelism: ranks that share a sequence send each other only what the rule keeps.

Each rank holds whole chunks. Per layer: the ranges of each segment's first chunk, from which the rank before scores
its last one; one all-gather of the sink and the kept tokens, whose backward is a reduce-scatter; and the last chunk
of each segment, point to point, to the next. What a rank then attends to is [compact ; raw] as on one device.

Shape suffixes: B batch, H query heads, G KV heads, N tokens of the row, n tokens on this rank, C compact keys,
L lag, D head size, P ranks, Z keys and values.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.lagkv import Chunking, gather_tokens
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.layout import ContextLayout, Segment
from lrsa_lightning.distributed.sequence_parallel import ShardedAttention
from lrsa_lightning.errors import InputError


class ContextParallel(ShardedAttention):
    """A mode with a chunked rule, on a share of the tokens. Full attention is the rule that keeps everything."""

    kind = "context"

    def __init__(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup, zigzag: bool = True):
        """
        Args:
            mode: the attention mode.
            config: the model's.
            seq_len: N.
            group: the ranks.
            zigzag: whether each rank holds an early and a late segment.

        Raises:
            InputError: the mode has no chunked rule, or fewer whole chunks than ranks.
        """
        super().__init__(mode, config, seq_len, group)
        rule = mode.context_rule(seq_len, group.size)
        if rule is None:
            raise InputError(f"{type(mode).__name__} does not say by which chunks its keys may be dealt out")
        self.rule = rule
        chunking = rule.chunking()
        if (chunks := chunking.complete_chunks(seq_len)) < group.size:
            raise InputError(
                f"data.seq_len {seq_len} holds {chunks} whole chunks of lag_size {chunking.lag_size} behind the sink "
                f"of {chunking.sink_size}: at most {chunks} ranks, or a smaller lag_size"
            )
        self.layout = ContextLayout(seq_len, chunking, group.size, zigzag)
        self.positions = self.layout.positions(group.rank)
        self._segments = self.layout.of_rank(group.rank)
        # Where each segment's tokens lie among the rank's.
        ends = [0, *accumulate(segment.num_tokens for segment in self._segments)]
        self._places = [slice(*ends[i : i + 2]) for i in range(len(self._segments))]

    def received_elements(self) -> int:
        chunking, others = self.rule.chunking(), self.group.size - 1
        kept = others * max(self._num_compact(rank, chunking.kept) for rank in range(self.group.size))
        halos = chunking.lag_size * sum(segment.index > 0 for segment in self._segments)
        ranges = 2 * self._most_segments * others if chunking.kept < chunking.lag_size else 0
        return 2 * self._kv_heads * self._head_dim * (kept + halos + ranges)

    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **_) -> Tensor:
        kv_ZBGnD = torch.stack([k_BGnD, v_BGnD])
        exact_ZBGnD, device_type = kv_ZBGnD.detach(), kv_ZBGnD.device.type
        if torch.is_autocast_enabled(device_type):
            # As on one device, tokens are chosen by the keys as they are, and attended to as autocast wants them.
            kv_ZBGnD = kv_ZBGnD.to(torch.get_autocast_dtype(device_type))
        chunking = self._chunking(module.layer_idx)
        compact_ZBGCD, halos = self._exchange(kv_ZBGnD, exact_ZBGnD, chunking, module.layer_idx)
        outs = []
        for segment, place in zip(self._segments, self._places, strict=True):
            raw_ZBGRD, raw_start = kv_ZBGnD[:, :, :, place], segment.start
            if segment.index > 0:
                raw_ZBGRD = torch.cat([halos[segment.index], raw_ZBGRD], dim=3)
                raw_start -= chunking.lag_size
            visible = chunking.compact_visible(chunking.chunk_of(segment.stop - 1))
            compact = compact_ZBGCD[:, :, :, :visible]
            q = q_BHnD[:, :, place]
            outs.append(self.rule.attend_stretch(q, (*compact,), (*raw_ZBGRD,), raw_start, chunking, scale))
        return torch.cat(outs, dim=2).transpose(1, 2).contiguous()

    def _chunking(self, layer_idx: int) -> Chunking:
        """The rule's sizes; a skipped layer keeps whole chunks, dealt out as in all others."""
        chunking = self.rule.chunking()
        if layer_idx in self.rule.skip_layers:
            return Chunking(chunking.sink_size, chunking.lag_size, chunking.lag_size)
        return chunking

    def _num_compact(self, rank: int, kept: int) -> int:
        return sum(self.layout.compact_len(segment, kept) for segment in self.layout.of_rank(rank))

    @property
    def _most_segments(self) -> int:
        return max(len(self.layout.of_rank(rank)) for rank in range(self.group.size))

    def _exchange(
        self, kv_ZBGnD: Tensor, exact_ZBGnD: Tensor, chunking: Chunking, layer_idx: int
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What this rank needs of the others.

        Args:
            kv_ZBGnD: its keys and values.
            exact_ZBGnD: the same, unrounded and without gradient, to choose by.
            chunking: the layer's sizes.
            layer_idx: the decoder layer.

        Returns:
            sink and kept tokens of the whole sequence, in order, [2, B, G, C, D]; and the chunk before each of this
            rank's segments, [2, B, G, L, D] by the segment's index, none for the first.
        """
        own = torch.cat(self._own_compact(kv_ZBGnD, exact_ZBGnD, chunking, layer_idx), dim=3)
        widths = [self._num_compact(rank, chunking.kept) for rank in range(self.group.size)]
        padded = torch.nn.functional.pad(own, (0, 0, 0, max(widths) - own.shape[3]))
        last_chunks, sent = self._outgoing(kv_ZBGnD)
        indices, expected = self._incoming()
        from_ranks, halos = self.group.gather_and_pass_on(padded, last_chunks, sent, expected)
        return self._in_order(from_ranks, chunking), dict(zip(indices, halos, strict=True))

    def _in_order(self, from_ranks: Tensor, chunking: Chunking) -> Tensor:
        parts, taken = [], [0] * self.group.size
        for segment in self.layout.segments:
            start, count = taken[segment.rank], self.layout.compact_len(segment, chunking.kept)
            parts.append(from_ranks[segment.rank, :, :, :, start : start + count])
            taken[segment.rank] += count
        return torch.cat(parts, dim=3)

    def _own_compact(self, kv_ZBGnD: Tensor, exact_ZBGnD: Tensor, chunking: Chunking, layer_idx: int) -> list[Tensor]:
        """What this rank's segments give to the compact keys, [2, B, G, ., D] each."""
        sink, ranges = chunking.sink_size, None
        if chunking.kept < chunking.lag_size:
            ranges = self._next_ranges(exact_ZBGnD, sink)
        parts = []
        for segment, place in zip(self._segments, self._places, strict=True):
            if segment.index == 0:
                parts.append(kv_ZBGnD[:, :, :, :sink])
            tokens = slice(place.start + (sink if segment.index == 0 else 0), place.stop)
            scored = kv_ZBGnD[:, :, :, tokens][:, :, :, : segment.scored * chunking.lag_size]
            if ranges is not None and segment.scored:
                next_range = ranges.get(segment.index)
                idx = self._choose(exact_ZBGnD[:, :, :, tokens], next_range, segment, chunking, layer_idx)
                scored = torch.stack([gather_tokens(z, idx) for z in scored])
            parts.append(scored)
        return parts

    def _choose(
        self, tokens: Tensor, next_range: Tensor | None, segment: Segment, chunking: Chunking, layer_idx: int
    ) -> Tensor:
        """Offsets of the tokens that a segment's chunks keep: int64 [B, G, M * chunks]."""
        lag, start = chunking.lag_size, chunking.sink_size + segment.chunks.start * chunking.lag_size
        chunks = tokens[:, :, :, : (segment.scored + 1) * lag]
        if segment.scored == len(segment.chunks):
            # A chunk's score depends on the next one through its range alone: two tokens can stand in for it.
            low, high = next_range.unbind(3)
            behind = [low.unsqueeze(3), high.unsqueeze(3).expand(-1, -1, -1, lag - 1, -1)]
            chunks = torch.cat([tokens[:, :, :, : segment.scored * lag], *behind], dim=3)
        return self.rule.keep_best(*chunks, layer_idx, start)

    def _next_ranges(self, kv_ZBGnD: Tensor, sink: int) -> dict[int, Tensor]:
        """Lowest and highest value of each channel in the chunk behind each of this rank's segments.

        Returns:
            [2, B, G, 2, D] by the segment's index; none for the last.
        """
        own = []
        for segment, place in zip(self._segments, self._places, strict=True):
            first = place.start + (sink if segment.index == 0 else 0)
            chunk = kv_ZBGnD[:, :, :, first : first + self.layout.chunking.lag_size]
            own.append(torch.stack([chunk.amin(dim=3), chunk.amax(dim=3)], dim=3))
        own += [own[-1]] * (self._most_segments - len(own))
        from_ranks = self.group.all_gather(torch.stack(own))
        return {
            segment.index: from_ranks[following.rank, self.layout.of_rank(following.rank).index(following)]
            for segment, following in self.layout.handovers()
            if segment.rank == self.group.rank
        }

    def _outgoing(self, kv_ZBGnD: Tensor) -> tuple[Tensor, list[int]]:
        """Last chunks of this rank's segments, in the order of the ranks that need them, and how many go to each."""
        lag, rank = self.layout.chunking.lag_size, self.group.rank
        places = {segment.index: place for segment, place in zip(self._segments, self._places, strict=True)}
        to = sorted((next_.rank, next_.index, s.index) for s, next_ in self.layout.handovers() if s.rank == rank)
        ends = [places[index].stop for _, _, index in to]
        empty = kv_ZBGnD.new_empty(0, *kv_ZBGnD.shape[:3], lag, kv_ZBGnD.shape[4])
        blocks = [kv_ZBGnD[None, :, :, :, end - lag : end] for end in ends]
        return torch.cat([empty, *blocks]), self._counts(receiver for receiver, *_ in to)

    def _incoming(self) -> tuple[list[int], list[int]]:
        """The segments whose preceding chunks come, in the order in which they come, and how many from each rank."""
        rank = self.group.rank
        pairs = sorted((s.rank, next_.index) for s, next_ in self.layout.handovers() if next_.rank == rank)
        return [index for _, index in pairs], self._counts(sender for sender, _ in pairs)

    def _counts(self, ranks: Iterable[int]) -> list[int]:
        counts = Counter(ranks)
        return [counts[rank] for rank in range(self.group.size)]
