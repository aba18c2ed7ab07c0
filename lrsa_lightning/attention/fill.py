"""LRSA chunk by chunk, as the paper prefills: runs on CPU and CUDA through SDPA, on NPU through its fused attention.

A fill takes the queries of one or several chunks. Their keys are the kept prefix, the chunk before them
and their own chunks, which lie in order, so that a fill of one chunk is a lower-right causal attention.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, C compact keys (sink, then kept
tokens), R raw keys, Q queries of a fill.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention.lagkv import Chunking, gather_tokens
from lrsa_lightning.attention.packing import sample_by_sample


@sample_by_sample
def lrsa_attention(
    q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, mode, scale: float | None = None, *, layer_idx: int | None = None
) -> Tensor:
    """Masked training forward of `mode`.

    Args:
        q_BHND: queries after RoPE, [B, H, N, D].
        k_BGND: keys after RoPE, [B, G, N, D], H a multiple of G.
        v_BGND: values, [B, G, N, D].
        mode: the `LRSA` that holds the rule's sizes and `chunks_per_fill`.
        scale: of the logits; 1 / sqrt(D) when None.
        layer_idx: the decoder layer, for `skip_layers`.
        cu_seqlens: boundaries of the samples in each row, from 0 to N, for packed rows; None for one sample a row.

    Returns:
        [B, H, N, D] in the dtype of the queries; differentiable in q, k and v.
    """
    idx_BGC = mode.select(k_BGND, v_BGND, layer_idx)
    compact = gather_tokens(k_BGND, idx_BGC), gather_tokens(v_BGND, idx_BGC)
    return attend(q_BHND, compact, (k_BGND, v_BGND), 0, mode.chunking(layer_idx), mode.chunks_per_fill, scale)


def attend(
    q_BHQD: Tensor,
    compact: tuple[Tensor, Tensor],
    raw: tuple[Tensor, Tensor],
    raw_start: int,
    chunking: Chunking,
    chunks_per_fill: int = 1,
    scale: float | None = None,
) -> Tensor:
    """Attention of the last Q tokens of a sequence over its compact and its raw keys.

    Args:
        q_BHQD: queries of the last Q positions.
        compact: keys and values [B, G, C, D] of the sink and of the kept tokens, in order.
        raw: keys and values [B, G, R, D] of positions raw_start .. raw_start + R - 1, the queries' own last.
        raw_start: position of the first raw key.
        chunking: the rule's sizes.
        chunks_per_fill: chunks whose queries share one SDPA call.
        scale: of the logits; 1 / sqrt(D) when None.

    Returns:
        [B, H, Q, D].
    """
    if torch.is_autocast_enabled(q_BHQD.device.type):
        dtype = torch.get_autocast_dtype(q_BHQD.device.type)
        q_BHQD, compact, raw = q_BHQD.to(dtype), [z.to(dtype) for z in compact], [z.to(dtype) for z in raw]
    end = raw_start + raw[0].shape[2]
    if q_BHQD.device.type == "npu":  # whose attention takes all fills of one chunk at once
        from lrsa_lightning.npu.attention import FusedFills

        fills = list(_fills(end - q_BHQD.shape[2], end, raw_start, compact[0].shape[2], chunking, 1))
        return FusedFills.apply(q_BHQD, *compact, *raw, fills, scale)
    fills = list(_fills(end - q_BHQD.shape[2], end, raw_start, compact[0].shape[2], chunking, chunks_per_fill))
    return _Fills.apply(q_BHQD, *compact, *raw, fills, chunking, scale)


@dataclass(frozen=True)
class Fill:
    """Queries that share an attention call, and the keys they need. Positions are tokens of the sequence.

    Attributes:
        start, stop: the queries are start .. stop - 1.
        num_compact: compact keys they see, counted from the first.
        first_raw: first raw key they see; the last one is the last query's.
        queries, raw: the same as slices of the queries and of the raw keys at hand.
    """

    start: int
    stop: int
    num_compact: int
    first_raw: int
    queries: slice
    raw: slice

    @property
    def num_keys(self) -> int:
        """Keys of the fill, compact and raw."""
        return self.num_compact + self.stop - self.first_raw

    def join(self, compact: Tensor, raw: Tensor) -> Tensor:
        """The keys, or the values, of this fill, in order."""
        return torch.cat([compact[:, :, : self.num_compact], raw[:, :, self.raw]], dim=2)

    def mask(self, chunking: Chunking, device: torch.device) -> Tensor | None:
        """`static_mask` of the fill; that of a single chunk is lower-right causal, and None where it hides nothing."""
        if chunking.chunk_of(self.start) != chunking.chunk_of(self.stop - 1):
            return static_mask(self.start, self.stop, self.num_compact, self.first_raw, chunking, device)
        num_queries = self.stop - self.start
        if num_queries == 1:
            return None
        return torch.ones(num_queries, self.num_keys, dtype=torch.bool, device=device).tril(self.num_keys - num_queries)


def _fills(
    start: int, end: int, raw_start: int, num_compact: int, chunking: Chunking, chunks_per_fill: int
) -> Iterator[Fill]:
    """Cuts queries start .. end - 1 at every `chunks_per_fill`-th chunk boundary."""
    first_query = start
    while start < end:
        last_chunk = chunking.chunk_of(start) + chunks_per_fill - 1
        stop = min(end, chunking.sink_size + (last_chunk + 1) * chunking.lag_size)
        visible = min(chunking.compact_visible(chunking.chunk_of(stop - 1)), num_compact)
        first_raw = min(max(chunking.raw_visible(chunking.chunk_of(start)), raw_start), stop)
        queries, raw = slice(start - first_query, stop - first_query), slice(first_raw - raw_start, stop - raw_start)
        yield Fill(start, stop, visible, first_raw, queries, raw)
        start = stop


class _Fills(torch.autograd.Function):
    """All fills of a sequence. The backward joins each fill's keys again: kept, they would grow with N squared."""

    @staticmethod
    def forward(ctx, q, k_compact, v_compact, k_raw, v_raw, fills: list[Fill], chunking: Chunking, scale):
        ctx.save_for_backward(q, k_compact, v_compact, k_raw, v_raw)
        ctx.fills, ctx.chunking, ctx.scale = fills, chunking, scale
        out = q.new_empty(*q.shape[:-1], v_raw.shape[-1])
        for fill in fills:
            k, v = fill.join(k_compact, k_raw), fill.join(v_compact, v_raw)
            out[:, :, fill.queries] = sdpa(q[:, :, fill.queries], k, v, fill.mask(chunking, q.device), scale)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        q, k_compact, v_compact, k_raw, v_raw = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # A key is seen by many fills: its gradient is summed in float32, whatever the keys' dtype.
        wide = torch.promote_types(q.dtype, torch.float32)
        grads = [torch.zeros_like(z, dtype=wide) for z in (k_compact, k_raw, v_compact, v_raw)]
        for fill in reversed(ctx.fills):
            parts = q[:, :, fill.queries], fill.join(k_compact, k_raw), fill.join(v_compact, v_raw)
            with torch.enable_grad():
                parts = [z.detach().requires_grad_() for z in parts]
                out = sdpa(*parts, fill.mask(ctx.chunking, q.device), ctx.scale)
            grad_q[:, :, fill.queries], *joined = torch.autograd.grad(out, parts, grad_out[:, :, fill.queries])
            for grad, (compact, raw) in zip(joined, (grads[:2], grads[2:]), strict=True):
                compact[:, :, : fill.num_compact] += grad[:, :, : fill.num_compact]
                raw[:, :, fill.raw] += grad[:, :, fill.num_compact :]
        grad_kc, grad_kr, grad_vc, grad_vr = (grad.to(q.dtype) for grad in grads)
        return grad_q, grad_kc, grad_vc, grad_kr, grad_vr, None, None, None


def static_mask(
    start: int, stop: int, num_compact: int, first_raw: int, chunking: Chunking, device: torch.device
) -> Tensor:
    """Who sees whom on [compact ; raw]: a mask that depends on no data (DESIGN of the block mask).

    Args:
        start, stop: the queries' positions are start .. stop - 1.
        num_compact: compact keys in front: the sink, then M kept tokens a chunk.
        first_raw: position of the first raw key; the last one is stop - 1.
        chunking: the rule's sizes.
        device: where the mask is made.

    Returns:
        bool [stop - start, num_compact + stop - first_raw], True where the query sees the key.
    """
    query = torch.arange(start, stop, device=device).unsqueeze(-1)
    lag_chunk = (query - chunking.sink_size).div(chunking.lag_size, rounding_mode="floor") - 1
    compact = torch.arange(num_compact, device=device)
    raw = torch.arange(first_raw, stop, device=device)
    sees_sink = (compact < chunking.sink_size) & (compact <= query)
    sees_kept = (compact >= chunking.sink_size) & (compact < chunking.sink_size + chunking.kept * lag_chunk)
    sees_raw = (
        (raw >= chunking.sink_size)
        & (raw <= query)
        & ((raw - chunking.sink_size).div(chunking.lag_size, rounding_mode="floor") >= lag_chunk)
    )
    return torch.cat([sees_sink | sees_kept, sees_raw], dim=-1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """SDPA with H a multiple of G; `mask` True where the query sees the key, None hides nothing."""
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
