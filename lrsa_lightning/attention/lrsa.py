"""Lag-Relative Sparse Attention as a mode: the rule's sizes, and its way into transformers."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from typing import Literal

import torch
from torch import Tensor

from lrsa_lightning.attention import fill, flex, lagkv, naive
from lrsa_lightning.attention.architecture import check_architecture, length_dependent_rope
from lrsa_lightning.attention.base import AttentionMode, text_decoder
from lrsa_lightning.attention.block_mask import TILE
from lrsa_lightning.attention.lagkv import Chunking
from lrsa_lightning.attention.layer_call import check_layer_call
from lrsa_lightning.attention.packing import CuSeqlens
from lrsa_lightning.attention.rows import boundaries_told, find_rows
from lrsa_lightning.attention.scorers import SCORERS, Place, ScorerName
from lrsa_lightning.errors import InputError
from lrsa_lightning.flops import causal_pairs
from lrsa_lightning.ranges import ClosedUnitInterval, FiniteFloat, NonNegativeInt, PositiveInt, checked

log = logging.getLogger(__name__)

_EXECUTIONS = {"naive": naive.lrsa_attention, "fill": fill.lrsa_attention, "flex": flex.lrsa_attention}
# A sink longer than any sequence: an uncompressed layer is the same rule without chunks.
_UNCOMPRESSED = Chunking(sink_size=2**62, lag_size=1, kept=1)


class LRSA(AttentionMode):
    """Lag-Relative Sparse Attention (arXiv 2506.11498): attention over a cache compressed chunk by chunk.

    The same rule in training (masked forward), in chunked prefill and in decoding (`LagKVCache`).
    """

    needs_padding_mask = False
    not_in_key = frozenset({"_reach", "_first_kv_head"})

    @checked
    def __init__(
        self,
        lag_size: PositiveInt = 1024,
        retention_ratio: ClosedUnitInterval = 0.5,
        sink_size: NonNegativeInt = 16,
        v_weight: FiniteFloat = 1.0,
        skip_layers: Sequence[NonNegativeInt] = (),
        scorer: ScorerName = "lagkv",
        backend: Literal["auto", "naive", "fill", "flex"] = "auto",
        chunks_per_fill: PositiveInt = 1,
        seed: int = 0,
    ):
        """
        Args:
            lag_size: L, tokens in a chunk, scored against the chunk behind it.
            retention_ratio: r, share of a chunk's tokens kept; 1 is full attention.
            sink_size: S, tokens at the start that are never dropped.
            v_weight: weight of the values' score beside the keys'.
            skip_layers: decoder layers left uncompressed.
            scorer: how a chunk's tokens are ranked: lagkv; as controls random and key_norm at the same budget, and
                window, which keeps only the sink and the last chunks.
            backend: execution of the mask; auto picks by device.
            chunks_per_fill: chunks whose queries share one attention call; speed and memory only.
            seed: of the scorer random.

        Raises:
            InputError: a number outside its range, a layer named twice, or sizes that keep no token of a chunk.
        """
        kept = 0 if scorer == "window" else lagkv.kept_per_chunk(lag_size, retention_ratio)
        if kept == 0 and scorer != "window":
            raise InputError(
                f"LRSA: retention_ratio {retention_ratio} of lag_size {lag_size} keeps no token of a chunk. Raise "
                "either, or take scorer window, which keeps only the sink and the last chunks"
            )
        if len({*skip_layers}) < len(skip_layers):
            raise InputError(f"LRSA: skip_layers {list(skip_layers)} names a layer twice")
        self.lag_size = lag_size
        self.retention_ratio = retention_ratio
        self.sink_size = sink_size
        self.v_weight = v_weight
        self.skip_layers = tuple(skip_layers)
        self.scorer = scorer
        self.backend = backend
        self.chunks_per_fill = chunks_per_fill
        self.seed = seed
        self._chunking = Chunking(sink_size, lag_size, kept)
        self._reach: int | None = None
        self._first_kv_head = 0

    def __repr__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({args})"

    def chunking(self, layer_idx: int | None = None) -> Chunking:
        """The rule's sizes in a layer; a skipped layer is all sink."""
        return _UNCOMPRESSED if layer_idx in self.skip_layers else self._chunking

    def select(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int | None = None) -> Tensor:
        """Positions that stay visible for good in this layer: int64 [B, G, C], see `lagkv.select`."""
        num_tokens, chunking = k_BGND.shape[2], self.chunking(layer_idx)
        num_chunks = chunking.compressed_chunks(num_tokens)
        if num_chunks:
            chunks = slice(chunking.sink_size, chunking.sink_size + (num_chunks + 1) * chunking.lag_size)
            scores = self.score(k_BGND[:, :, chunks], v_BGND[:, :, chunks], layer_idx, chunking.sink_size)
        else:
            scores = k_BGND.new_zeros((*k_BGND.shape[:2], 0, chunking.lag_size), dtype=torch.float32)
        return lagkv.compact_positions(scores, num_tokens, chunking.sink_size, chunking.kept)

    @torch.no_grad()
    def score(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int | None, start: int) -> Tensor:
        """Scores of T consecutive chunks, given T + 1 from position ``start`` on: float32 [B, G, T, L]."""
        return SCORERS[self.scorer](k_BGND, v_BGND, self, Place(layer_idx or 0, start, self._first_kv_head))

    def keep_best(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int, start: int) -> Tensor:
        """Offsets of the tokens kept of T consecutive chunks, given T + 1: int64 [B, G, T * M], ascending."""
        if self._runs_flex(k_BGND) and flex.has_fused_selection(self, k_BGND):
            from lrsa_lightning.attention import kernels

            chunks = Chunking(0, self.lag_size, self._chunking.kept)
            return kernels.select(k_BGND, v_BGND, chunks, self.v_weight)[0]
        return lagkv.keep_best(self.score(k_BGND, v_BGND, layer_idx, start), self._chunking.kept)

    def attention_function(self) -> Callable:
        return self._transformers_attention

    def for_heads(self, first_kv_head: int) -> "LRSA":
        mode = copy.copy(self)
        mode._first_kv_head = first_kv_head
        return mode

    def context_rule(self, num_tokens: int, size: int) -> "LRSA":
        return self

    def visible_pairs(self, num_tokens: int, layer_idx: int | None = None) -> int:
        chunking = self.chunking(layer_idx)
        sink, lag = chunking.sink_size, chunking.lag_size
        # Each query of chunk c misses what chunks 0 .. c-2 dropped.
        missed = sum(
            min(lag, num_tokens - sink - chunk * lag) * (chunking.raw_visible(chunk) - chunking.compact_visible(chunk))
            for chunk in range(2, chunking.chunk_of(num_tokens - 1) + 1)
        )
        return super().visible_pairs(num_tokens, layer_idx) - missed

    def make_cache(self, config, lengths: Sequence[int] | None = None):
        from lrsa_lightning.attention.cache import LagKVCache

        return LagKVCache(self, config, lengths)

    def for_length(self, num_tokens: int) -> "LRSA":
        mode = copy.copy(self)
        mode._reach = num_tokens
        return mode

    def remark(self, num_tokens: int, num_layers: int) -> str | None:
        if any(self.visible_pairs(num_tokens, layer) < causal_pairs(num_tokens) for layer in range(num_layers)):
            return None
        return (
            f"{self!r} compresses nothing in {num_tokens} tokens: it is full attention here. It drops tokens where "
            "texts are longer than sink_size + 2 lag_size, retention_ratio is below 1 and a layer is not in skip_layers"
        )

    def check(self, config) -> None:
        self._check_decoder(config.get_text_config(decoder=True))

    def _check_decoder(self, config, decoder_class: type | None = None) -> None:
        """`check`, given the configuration of the text decoder alone, and its class where it is known."""
        if rope_type := length_dependent_rope(config):
            raise InputError(
                f"LRSA cannot run with rope_type {rope_type!r}: its angles depend on the length seen so far, so "
                "training, prefill and decoding would disagree. Use default, linear, yarn or llama3."
            )
        reach = self._reach or getattr(config, "max_position_embeddings", None) or inf
        check_architecture(config, reach, decoder_class)
        if unknown := [layer for layer in self.skip_layers if layer >= config.num_hidden_layers]:
            raise InputError(f"LRSA: skip_layers {unknown} do not exist, the model has {config.num_hidden_layers}")

    def install(self, model) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        decoder = text_decoder(model)
        self._check_decoder(decoder.config, type(decoder))
        name = self.registry_key()
        AttentionInterface.register(name, self._transformers_attention)
        AttentionMaskInterface.register(name, find_rows)
        super().install(model)

    def _transformers_attention(
        self,
        module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask,
        scaling: float | None = None,
        cu_seqlens: CuSeqlens | None = None,
        **asked,
    ) -> tuple[Tensor, None]:
        """The function transformers calls in each attention layer: [B, H, N, D] in, [B, N, H, D] out.

        ``cu_seqlens`` is the argument that the model's forward was given: see `packing.sample_by_sample`.
        """
        layer_idx, view = module.layer_idx, getattr(key, "lrsa_view", None)
        check_layer_call(module, key.shape[2] if view is None else view.end, **asked)
        positions, use_cache = asked.get("position_ids"), asked.get("use_cache")
        boundaries = cu_seqlens
        if boundaries is None:
            boundaries = boundaries_told(attention_mask, module, positions, use_cache, query.shape[2])
        if view is not None:
            out = self.attend_cached(query, key, value, view, layer_idx, scaling)
        elif query.shape[2] == key.shape[2]:
            execution = _EXECUTIONS[_resolve_backend(self.backend, query.device.type, query.shape[-1])]
            out = execution(query, key, value, self, scaling, layer_idx=layer_idx, cu_seqlens=boundaries)
        else:
            raise InputError(
                "LRSA found keys of a cache that does not follow its rule. Pass "
                "past_key_values=mode.make_cache(model.config) to the forward or to generate()."
            )
        return out.transpose(1, 2).contiguous(), None

    def attend_cached(
        self, q_BHQD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, view, layer_idx: int, scale: float | None = None
    ) -> Tensor:
        """Attention of the newest Q tokens over what their cache layer returned: [B, H, Q, D].

        Args:
            q_BHQD: queries after RoPE.
            k_BGTD: the keys that `LagKVLayer.update` returned.
            v_BGTD: the values it returned.
            view: the `CacheView` of the keys.
            layer_idx: the decoder layer.
            scale: of the logits; 1 / sqrt(D) when None.
        """
        view.take(self)
        if view.padding is not None:
            return fill.sdpa(q_BHQD, k_BGTD, v_BGTD, view.row_mask(), scale)
        chunking, num_queries = self.chunking(layer_idx), q_BHQD.shape[2]
        if num_queries == 1 and view.newest_sees_all(chunking):
            return fill.sdpa(q_BHQD, k_BGTD, v_BGTD, None, scale)
        compact, raw = zip(view.split(k_BGTD), view.split(v_BGTD), strict=True)
        arguments = q_BHQD, compact, raw, view.raw_start, chunking
        is_sparse = chunking.compressed_chunks(view.end) > 0
        if is_sparse and num_queries >= TILE and self._runs_flex(q_BHQD) and flex.pick_kernel(q_BHQD) == "FLASH":
            return flex.attend_stretch(*arguments, scale, "FLASH")
        return fill.attend(*arguments, self.chunks_per_fill, scale)

    def attend_stretch(
        self,
        q_BHQD: Tensor,
        compact: tuple[Tensor, Tensor],
        raw: tuple[Tensor, Tensor],
        raw_start: int,
        chunking: Chunking,
        scale: float | None = None,
    ) -> Tensor:
        """Training attention of a stretch of a sequence that lies on several devices: [B, H, Q, D].

        Arguments as in `fill.attend`; ``chunking`` is the layer's, and ``raw`` ends with the stretch.
        """
        if self._runs_flex(q_BHQD):
            return flex.attend_stretch(q_BHQD, compact, raw, raw_start, chunking, scale)
        return fill.attend(q_BHQD, compact, raw, raw_start, chunking, self.chunks_per_fill, scale)

    def _runs_flex(self, z_BXND: Tensor) -> bool:
        return _resolve_backend(self.backend, z_BXND.device.type, z_BXND.shape[-1]) == "flex"


@cache
def _resolve_backend(backend: str, device_type: str, head_dim: int) -> str:
    """The execution for a device, said once in the log."""
    if backend == "flex" and device_type == "npu":
        raise InputError("LRSA: FlexAttention does not run on NPUs; take backend auto, or fill")
    if backend != "auto":
        return backend
    if device_type == "cuda" and head_dim >= 16:  # FlexAttention takes no smaller ones
        log.info("LRSA backend auto: flex ([compact ; raw] under a static block mask) on cuda")
        return "flex"
    kernel = "npu_fusion_attention" if device_type == "npu" else "SDPA"
    log.info("LRSA backend auto: fill (%s, chunk by chunk) on %s", kernel, device_type)
    return "fill"
