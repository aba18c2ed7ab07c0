"""LRSA context parallelism: ranks that share a sequence send each other only what the rule keeps.

Each rank holds whole chunks. Per layer: the ranges of each segment's first chunk, from which the rank before scores
its last one; an all-gather of the sink and the kept tokens, whose backward is a reduce-scatter; and the last chunk of
each segment, point to point, to the next. What a rank then attends to is [compact ; raw] as on one device. Early and
late segments travel as two waves: the late ones', while the early segment is attended to; in the backward likewise.

Shape suffixes: B batch, H query heads, G KV heads, N tokens of the row, n tokens on this rank, C compact keys,
L lag, D head size, P ranks, Z keys and values.
"""

from itertools import accumulate

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.lagkv import Chunking, gather_tokens
from lrsa_lightning.distributed.group import Exchange, SequenceGroup
from lrsa_lightning.distributed.layout import ContextLayout, Segment
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
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
        # This rank's segments, and where each one's tokens lie among the rank's.
        segments = self.layout.of_rank(group.rank)
        ends = [0, *accumulate(segment.num_tokens for segment in segments)]
        self._places = {segment: slice(*ends[i : i + 2]) for i, segment in enumerate(segments)}

    def received_elements(self) -> int:
        chunking, layout, others = self.rule.chunking(), self.layout, self.group.size - 1
        kept = others * sum(self._width(wave, chunking) for wave in layout.waves)
        from_others = [s for s in self._places if s.index and layout.before(s).rank != self.group.rank]
        ranges = 2 * len(layout.waves) * others if chunking.kept < chunking.lag_size else 0
        return 2 * self._kv_heads * self._head_dim * (kept + chunking.lag_size * len(from_others) + ranges)

    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **_) -> Tensor:
        kv_ZBGnD = torch.stack([k_BGnD, v_BGnD])
        exact_ZBGnD, device_type = kv_ZBGnD.detach(), kv_ZBGnD.device.type
        if torch.is_autocast_enabled(device_type):
            # As on one device, tokens are chosen by the keys as they are, and attended to as autocast wants them.
            kv_ZBGnD = kv_ZBGnD.to(torch.get_autocast_dtype(device_type))
        chunking = self._chunking(module.layer_idx)
        exchanges = self._start_exchanges(kv_ZBGnD, exact_ZBGnD, chunking, module.layer_idx)
        compact_parts, outs = [], []
        for index, (segment, place) in enumerate(self._places.items()):
            # A rank's last segment waits for all waves, also one that brings it nothing: see `Exchange`.
            awaited = slice(index, None if index + 1 == len(self._places) else index + 1)
            arrived = [exchange.wait() for exchange in exchanges[awaited]]
            for wave, (from_ranks, _) in zip(self.layout.waves[awaited], arrived, strict=True):
                compact_parts += self._in_order(wave, from_ranks, chunking)
            raw_ZBGRD, raw_start = kv_ZBGnD[:, :, :, place], segment.start
            if segment.index > 0:
                raw_ZBGRD = torch.cat([arrived[0][1][0], raw_ZBGRD], dim=3)
                raw_start -= chunking.lag_size
            visible = chunking.compact_visible(chunking.chunk_of(segment.stop - 1))
            compact_ZBGCD = torch.cat(compact_parts, dim=3)[:, :, :, :visible]
            q = q_BHnD[:, :, place]
            outs.append(self.rule.attend_stretch(q, (*compact_ZBGCD,), (*raw_ZBGRD,), raw_start, chunking, scale))
        return torch.cat(outs, dim=2).transpose(1, 2).contiguous()

    def _chunking(self, layer_idx: int) -> Chunking:
        """The rule's sizes; a skipped layer keeps whole chunks, dealt out as in all others."""
        chunking = self.rule.chunking()
        if layer_idx in self.rule.skip_layers:
            return Chunking(chunking.sink_size, chunking.lag_size, chunking.lag_size)
        return chunking

    def _start_exchanges(
        self, kv_ZBGnD: Tensor, exact_ZBGnD: Tensor, chunking: Chunking, layer_idx: int
    ) -> list[Exchange]:
        """Sends out what other ranks need, a wave at a time.

        Args:
            kv_ZBGnD: this rank's keys and values.
            exact_ZBGnD: the same, unrounded and without gradient, to choose by.
            chunking: the layer's sizes.
            layer_idx: the decoder layer.

        Returns:
            of each wave: of all ranks the sink and kept tokens of their segments, [2, B, G, ., D] padded to one width;
            and of this rank's segment the chunk before it, [2, B, G, L, D], none for the first.
        """
        ranges = self._next_ranges(exact_ZBGnD) if chunking.kept < chunking.lag_size else {}
        exchanges = []
        for wave in self.layout.waves:
            own = [kv_ZBGnD[:, :, :, :0]]
            for segment, place in self._places.items():
                if segment in wave:
                    own += self._compact_of(
                        segment, kv_ZBGnD[:, :, :, place], exact_ZBGnD[:, :, :, place], ranges, chunking, layer_idx
                    )
            own_ZBGCD = torch.cat(own, dim=3)
            padded = torch.nn.functional.pad(own_ZBGCD, (0, 0, 0, self._width(wave, chunking) - own_ZBGCD.shape[3]))
            exchanges.append(self.group.start(padded, *self._messages(wave, kv_ZBGnD)))
        return exchanges

    def _width(self, wave: tuple[Segment, ...], chunking: Chunking) -> int:
        return max(self.layout.compact_len(segment, chunking.kept) for segment in wave)

    def _in_order(self, wave: tuple[Segment, ...], from_ranks: Tensor, chunking: Chunking) -> list[Tensor]:
        return [from_ranks[s.rank, :, :, :, : self.layout.compact_len(s, chunking.kept)] for s in wave]

    def _messages(self, wave: tuple[Segment, ...], kv_ZBGnD: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """The last chunks that this rank sends to the segments of a wave, how many to and how many from each rank."""
        lag, rank = self.layout.chunking.lag_size, self.group.rank
        sent, expected = [0] * self.group.size, [0] * self.group.size
        blocks = [kv_ZBGnD.new_empty(0, *kv_ZBGnD.shape[:3], lag, kv_ZBGnD.shape[4])]
        for segment in sorted(wave, key=lambda segment: segment.rank):
            before = self.layout.before(segment)
            if before is not None and before.rank == rank:
                end = self._places[before].stop
                blocks.append(kv_ZBGnD[None, :, :, :, end - lag : end])
                sent[segment.rank] = 1
            if before is not None and segment.rank == rank:
                expected[before.rank] = 1
        return torch.cat(blocks), sent, expected

    def _compact_of(
        self,
        segment: Segment,
        kv_ZBGsD: Tensor,
        exact_ZBGsD: Tensor,
        ranges: dict[int, Tensor],
        chunking: Chunking,
        layer_idx: int,
    ) -> list[Tensor]:
        """What one of this rank's segments, given its s tokens, gives to the compact keys, [2, B, G, ., D] each."""
        sink = chunking.sink_size if segment.index == 0 else 0
        scored = kv_ZBGsD[:, :, :, sink : sink + segment.scored * chunking.lag_size]
        if segment.scored and chunking.kept < chunking.lag_size:
            tokens = exact_ZBGsD[:, :, :, sink:]
            idx = self._choose(tokens, ranges.get(segment.index), segment, chunking, layer_idx)
            scored = torch.stack([gather_tokens(z, idx) for z in scored])
        return [kv_ZBGsD[:, :, :, :sink], scored]

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

    def _next_ranges(self, kv_ZBGnD: Tensor) -> dict[int, Tensor]:
        """Lowest and highest value of each channel in the chunk behind each of this rank's segments.

        Returns:
            [2, B, G, 2, D] by the segment's index; none for the last.
        """
        own = []
        for segment, place in self._places.items():
            first = place.start + (self.layout.chunking.sink_size if segment.index == 0 else 0)
            chunk = kv_ZBGnD[:, :, :, first : first + self.layout.chunking.lag_size]
            own.append(torch.stack([chunk.amin(dim=3), chunk.amax(dim=3)], dim=3))
        own += [own[-1]] * (len(self.layout.waves) - len(own))
        from_ranks = self.group.all_gather(torch.stack(own))
        behind = [(segment, self.layout.behind(segment)) for segment in self._places]
        return {s.index: from_ranks[b.rank, self.layout.of_rank(b.rank).index(b)] for s, b in behind if b is not None}
