"""Attention metadata of a step: a builder that compresses what is due, and gives a stock builder compact tables.

Decoding is then stock code: a chunk is compressed while the metadata are built, for all layers at once, if the step
starts at its boundary. Boundaries inside a step wait for the layer's forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata

from lrsa_lightning.errors import InputError
from lrsa_lightning.serving.vllm.cache_spec import LagSpec
from lrsa_lightning.serving.vllm.layout import BlockLayout
from lrsa_lightning.serving.vllm.steps import Move, Piece, Round, cut
from lrsa_lightning.serving.vllm.tables import PieceTables, compact_table, compressed_chunks


@dataclass(frozen=True)
class Attending:
    """One attention call.

    Attributes:
        metadata: the stock builder's.
        rows: its queries among those of the step; None for all.
        move: what to compress before it, in each layer.
    """

    metadata: Any
    rows: slice | Tensor | None = None
    move: Move | None = None


@dataclass(frozen=True)
class LagMetadata:
    """The attention calls of a step, in order."""

    calls: tuple[Attending, ...]


class LagBuilder:
    """Mixin before a stock metadata builder."""

    # A graph of a decoding step replays compact tables; a prefill may need several calls.
    supports_update_block_table = False
    supports_draft_decode_metadata_update = False

    def __init__(self, kv_cache_spec, layer_names: list[str], vllm_config, device: torch.device):
        if not isinstance(kv_cache_spec, LagSpec):
            raise InputError(f"a compressed layer got the KV cache of {type(kv_cache_spec).__name__}: {layer_names[0]}")
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.layout: BlockLayout = kv_cache_spec.layout
        self._layers = [vllm_config.compilation_config.static_forward_context[name] for name in layer_names]
        largest_graph = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self._most_requests = max(vllm_config.scheduler_config.max_num_seqs, largest_graph) + 1
        self._buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec) -> AttentionCGSupport:
        """Whatever the stock builder can do: only a decoding step is a single call."""
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False):
        """Compresses what is due at the start of the step, and builds the metadata of its attention calls."""
        common = common_attn_metadata
        rounds = self._rounds(common)
        if move := Move.of(self.layout, rounds[0].due, common.block_table_tensor):
            for layer in self._layers:
                layer.impl.compress(layer, move)
        if len(rounds) == 1:
            return LagMetadata((Attending(super().build(common_prefix_len, self._compacted(common), fast_build)),))
        calls = []
        for number, part in enumerate(rounds):
            # A stock builder may keep buffers of its own, which a second call in a step must not take.
            metadata = super().build(0, self._part(common, part.pieces), True)
            move = Move.of(self.layout, part.due, common.block_table_tensor) if number else None
            calls.append(Attending(metadata, part.rows(self.device), move))
        return LagMetadata(tuple(calls))

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata):
        """Compresses nothing: there are no requests. The graph must serve lengths up to the model's longest."""
        longest = common_attn_metadata.max_seq_len
        metadata = super().build(0, self._compacted(common_attn_metadata).replace(max_seq_len=longest))
        return LagMetadata((Attending(metadata),))

    def _rounds(self, common: CommonAttentionMetadata) -> list[Round]:
        # Without speculative decoding the upper bound is exact.
        rows, ends = common.query_start_loc_cpu, common.seq_lens_cpu_upper_bound
        starts = ends - (rows[1:] - rows[:-1])
        return cut(self.layout, starts.tolist(), rows.tolist())

    def _compacted(self, common: CommonAttentionMetadata) -> CommonAttentionMetadata:
        """With compact tables and lengths, in buffers that CUDA graphs may keep."""
        layout, table_RW, ends_R = self.layout, common.block_table_tensor, common.seq_lens
        if self._buffers is None:
            size = self._most_requests
            self._buffers = table_RW.new_zeros(size, table_RW.shape[1]), ends_R.new_zeros(size)
        compact_RW, held_R = (buffer[: len(ends_R)] for buffer in self._buffers)
        compressed_R = compressed_chunks(layout, ends_R, common.query_start_loc)
        compact_table(layout, table_RW, compressed_R, out=compact_RW)
        held_R.copy_(layout.held_len(ends_R, compressed_R))
        ends_cpu = common.seq_lens_cpu_upper_bound
        held_cpu = layout.held_len(ends_cpu, compressed_chunks(layout, ends_cpu, common.query_start_loc_cpu))
        return common.replace(
            block_table_tensor=compact_RW,
            seq_lens=held_R,
            seq_lens_cpu_upper_bound=held_cpu.to(ends_cpu.dtype),
            max_seq_len=int(held_cpu.max()),
            _num_computed_tokens_cache=None,
        )

    def _part(self, common: CommonAttentionMetadata, pieces: list[Piece]) -> CommonAttentionMetadata:
        """The metadata of some pieces, as of a batch of their own."""
        tables = PieceTables.of(self.layout, pieces, common.block_table_tensor)
        held_cpu, num_rows = torch.tensor(tables.held, dtype=torch.int32), int(tables.rows[-1])
        return CommonAttentionMetadata(
            query_start_loc=tables.rows.to(self.device),
            query_start_loc_cpu=tables.rows,
            seq_lens=held_cpu.to(self.device),
            seq_lens_cpu_upper_bound=held_cpu,
            num_reqs=len(pieces),
            num_actual_tokens=num_rows,
            max_query_len=max(len(piece.rows) for piece in pieces),
            max_seq_len=max(tables.held),
            block_table_tensor=tables.table_RW,
            slot_mapping=common.slot_mapping[:num_rows],
            causal=common.causal,
        )
