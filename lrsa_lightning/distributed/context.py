"""LRSA context parallelism: ranks of a group send each other only what the rule keeps of their common sequence.

Each rank holds complete chunks. In each layer a rank needs from the others:

- the value ranges of the next chunk, to score the last chunk of each of its segments;
- the sink and the kept tokens, by an all-gather, whose backward is a reduce-scatter;
- the last chunk of the previous segment, point to point.

A rank then attends to [compact ; raw] as on one device. Early and late segments travel as two waves. The late wave
travels while the rank attends with its early segment; the backward does the same in reverse.

Shape suffixes: B batch, H query heads, G KV heads, N tokens of the row, n tokens on this rank, s tokens of a segment,
C compact keys, R raw keys, L lag, D head size, P ranks, Z keys and values.
"""

from itertools import accumulate

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.layer_call import beyond_full_attention, in_computed_dtype
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule, gather_tokens
from lrsa_lightning.distributed.group import Exchange, SequenceGroup
from lrsa_lightning.distributed.layout import ContextLayout, Segment
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
from lrsa_lightning.errors import InputError


class ContextParallel(ShardedAttention):
    """A mode that has a rule of chunks, on a part of the tokens. Full attention is the rule that keeps everything."""

    kind = "context"

    def __init__(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup, zigzag: bool = True):
        """Arguments as in the base class, and:

        Args:
            zigzag: whether each rank holds an early and a late segment.

        Raises:
            InputError: the mode has no rule of chunks, or the sequence fewer complete chunks than ranks.
        """
        super().__init__(mode, config, seq_len, group)
        rule = mode.context_rule(seq_len, group.size)
        if rule is None:
            raise InputError(f"{type(mode).__name__} does not say by which chunks its keys may be distributed")
        self.rule = rule
        if (chunks := rule.complete_chunks(seq_len)) < group.size:
            raise InputError(
                f"data.seq_len {seq_len} holds {chunks} complete chunks of lag_size {rule.lag_size} after the sink "
                f"of {rule.sink_size}: at most {chunks} ranks, or a smaller lag_size"
            )
        self.layout = ContextLayout(seq_len, rule, group.size, zigzag)
        self.positions = self.layout.positions(group.rank)
        # The segments of this rank, and where the tokens of each are among the rank's.
        segments = self.layout.of_rank(group.rank)
        ends = [0, *accumulate(segment.num_tokens for segment in segments)]
        self._places = {segment: slice(*ends[i : i + 2]) for i, segment in enumerate(segments)}

    def received_elements(self) -> int:
        rule, layout, others = self.rule, self.layout, self.group.size - 1
        kept = others * sum(self._width(wave, rule) for wave in layout.waves)
        from_others = [s for s in self._places if s.index and layout.before(s).rank != self.group.rank]
        ranges = 2 * len(layout.waves) * others if rule.drops_tokens else 0
        return 2 * self._kv_heads * self._head_dim * (kept + rule.lag_size * len(from_others) + ranges)

    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **others) -> Tensor:
        self._check_call(module, others)
        kv_ZBGnD = torch.stack([in_computed_dtype(z) for z in (k_BGnD, v_BGnD)])
        rule = self.mode.context_rule(self.seq_len, self.group.size, module.layer_idx)
        exchanges = self._start_exchanges(kv_ZBGnD, rule, module.layer_idx)
        layout, compact_parts, outs = self.layout, [], []
        for index, (segment, place) in enumerate(self._places.items()):
            # The last segment of a rank waits for all waves, also for one that brings it nothing: see `Exchange`.
            awaited = slice(index, None if index + 1 == len(self._places) else index + 1)
            arrived = [exchange.wait() for exchange in exchanges[awaited]]
            for wave, (from_ranks, _) in zip(layout.waves[awaited], arrived, strict=True):
                compact_parts += [from_ranks[s.rank, :, :, :, : layout.compact_len(s, rule.kept)] for s in wave]
            raw_ZBGRD = kv_ZBGnD[:, :, :, place]
            if segment.index > 0:
                raw_ZBGRD = torch.cat([arrived[0][1][0], raw_ZBGRD], dim=3)
            raw_start = segment.stop - raw_ZBGRD.shape[3]
            visible = rule.compact_visible(rule.chunk_of(segment.stop - 1))
            compact_ZBGCD = torch.cat(compact_parts, dim=3)[:, :, :, :visible]
            parts = KVLayout(rule, compact_ZBGCD.shape[3], segment.num_tokens, segment.start, raw_start)
            q = q_BHnD[:, :, place]
            outs.append(self.mode.execution.attend_segment(q, (*compact_ZBGCD,), (*raw_ZBGRD,), parts, scale))
        return torch.cat(outs, dim=2).transpose(1, 2).contiguous()

    def _check_call(self, module, arguments: dict) -> None:
        """LRSA has looked at the model before; full attention takes every model."""
        if (problem := beyond_full_attention(module, self.seq_len, **arguments)) is not None:
            raise InputError(
                f"sequence_parallel.kind context computes full causal attention, but {problem}. Otherwise take ulysses"
            )

    def _start_exchanges(self, kv_ZBGnD: Tensor, rule: LagRule, layer_idx: int) -> list[Exchange]:
        """Sends what other ranks need, one wave after the other.

        Args:
            kv_ZBGnD: this rank's keys and values.
            rule: the layer's.
            layer_idx: the decoder layer.

        Returns:
            for each wave: the sink and kept tokens of the segments of all ranks, [2, B, G, ., D] padded to one width;
            and the chunk before this rank's segment, [2, B, G, L, D], none for the first segment.
        """
        ranges = self._next_ranges(kv_ZBGnD.detach()) if rule.drops_tokens else {}
        exchanges = []
        for wave in self.layout.waves:
            own = [kv_ZBGnD[:, :, :, :0]]
            for segment in wave:
                if segment.rank == self.group.rank:
                    tokens = kv_ZBGnD[:, :, :, self._places[segment]]
                    own += self._compact_of(segment, tokens, ranges.get(segment.index), rule, layer_idx)
            own_ZBGCD = torch.cat(own, dim=3)
            padded = torch.nn.functional.pad(own_ZBGCD, (0, 0, 0, self._width(wave, rule) - own_ZBGCD.shape[3]))
            exchanges.append(self.group.start(padded, *self._messages(wave, kv_ZBGnD)))
        return exchanges

    def _width(self, wave: tuple[Segment, ...], rule: LagRule) -> int:
        return max(self.layout.compact_len(segment, rule.kept) for segment in wave)

    def _messages(self, wave: tuple[Segment, ...], kv_ZBGnD: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """Last chunks for the segments of a wave: those that this rank sends, how many to and from each rank."""
        lag, rank = self.rule.lag_size, self.group.rank
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
        next_range: Tensor | None,
        rule: LagRule,
        layer_idx: int,
    ) -> list[Tensor]:
        """The compact keys of one of this rank's segments, given its s tokens: sink and kept, [2, B, G, ., D] each."""
        sink = rule.sink_size if segment.index == 0 else 0
        scored = kv_ZBGsD[:, :, :, sink : sink + segment.scored * rule.lag_size]
        if segment.scored and rule.drops_tokens:
            idx = self._choose(kv_ZBGsD.detach()[:, :, :, sink:], next_range, segment, rule, layer_idx)
            scored = torch.stack([gather_tokens(z, idx) for z in scored])
        return [kv_ZBGsD[:, :, :, :sink], scored]

    def _choose(
        self, tokens: Tensor, next_range: Tensor | None, segment: Segment, rule: LagRule, layer_idx: int
    ) -> Tensor:
        """Offsets of the tokens that a segment's chunks keep: int64 [B, G, M * chunks]."""
        lag, start = rule.lag_size, rule.sink_size + segment.chunks.start * rule.lag_size
        chunks = tokens[:, :, :, : (segment.scored + 1) * lag]
        if segment.scored == len(segment.chunks):
            # A chunk's score depends on the range of the next chunk alone: two tokens can replace that chunk.
            low, high = next_range.unbind(3)
            next_chunk = [low.unsqueeze(3), high.unsqueeze(3).expand(-1, -1, -1, lag - 1, -1)]
            chunks = torch.cat([tokens[:, :, :, : segment.scored * lag], *next_chunk], dim=3)
        return self.mode.execution.keep_best(rule, *chunks, layer_idx, start)

    def _next_ranges(self, kv_ZBGnD: Tensor) -> dict[int, Tensor]:
        """Lowest and highest value of each channel in the chunk after each of this rank's segments.

        Returns:
            [2, B, G, 2, D] by the segment's index; none for the last.
        """
        own = []
        for segment, place in self._places.items():
            first = place.start + (self.rule.sink_size if segment.index == 0 else 0)
            chunk = kv_ZBGnD[:, :, :, first : first + self.rule.lag_size]
            own.append(torch.stack([chunk.amin(dim=3), chunk.amax(dim=3)], dim=3))
        own += [own[-1]] * (len(self.layout.waves) - len(own))
        from_ranks = self.group.all_gather(torch.stack(own))
        pairs = [(segment, self.layout.after(segment)) for segment in self._places]
        return {s.index: from_ranks[a.rank, self.layout.of_rank(a.rank).index(a)] for s, a in pairs if a is not None}
