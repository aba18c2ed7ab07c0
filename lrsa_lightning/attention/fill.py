"""LRSA chunk by chunk, as the paper prefills: runs on CPU, NPU and CUDA through SDPA.

A fill takes the queries of one or several chunks. Their keys are the kept prefix, the chunk before them
and their own chunks, which lie in order, so that a fill of one chunk is a lower-right causal attention.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, C compact keys (sink, then kept
tokens), R raw keys, Q queries of a fill.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lrsa_lightning.attention.lagkv import Chunking, gather_tokens

Parts = tuple[Tensor, Tensor]


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
    end = raw_start + raw[0].shape[2]
    first_query = end - q_BHQD.shape[2]
    outputs = []
    for start, stop in _fills(first_query, end, chunking, chunks_per_fill):
        num_compact = min(chunking.compact_visible(chunking.chunk_of(stop - 1)), compact[0].shape[2])
        first_raw = min(max(chunking.raw_visible(chunking.chunk_of(start)), raw_start), stop)
        seen = slice(num_compact), slice(first_raw - raw_start, stop - raw_start)
        k, v = ((c[:, :, seen[0]], r[:, :, seen[1]]) for c, r in zip(compact, raw, strict=True))
        q = q_BHQD[:, :, start - first_query : stop - first_query]
        mask = partial(_fill_mask, start, stop, num_compact, first_raw, chunking, q.device)
        outputs.append(_recomputed(_join_and_attend, q, k, v, mask, scale))
    return torch.cat(outputs, dim=2)


def _recomputed(function: Callable[..., Tensor], *args) -> Tensor:
    """Its result. The joined keys and the mask of a fill are made again in the backward: kept, they grow with N^2."""
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _join_and_attend(q: Tensor, k_parts: Parts, v_parts: Parts, mask: Callable[[], Tensor | None], scale) -> Tensor:
    return sdpa(q, torch.cat(k_parts, dim=2), torch.cat(v_parts, dim=2), mask(), scale)


def _fills(start: int, end: int, chunking: Chunking, chunks_per_fill: int) -> Iterator[tuple[int, int]]:
    """Cuts positions start .. end - 1 at every `chunks_per_fill`-th chunk boundary."""
    while start < end:
        last_chunk = chunking.chunk_of(start) + chunks_per_fill - 1
        stop = min(end, chunking.sink_size + (last_chunk + 1) * chunking.lag_size)
        yield start, stop
        start = stop


def _fill_mask(
    start: int, stop: int, num_compact: int, first_raw: int, chunking: Chunking, device: torch.device
) -> Tensor | None:
    """`static_mask` of a fill; that of a single chunk is lower-right causal, and None where it hides nothing."""
    if chunking.chunk_of(start) != chunking.chunk_of(stop - 1):
        return static_mask(start, stop, num_compact, first_raw, chunking, device)
    if stop - start == 1:
        return None
    num_keys = num_compact + stop - first_raw
    return torch.ones(stop - start, num_keys, dtype=torch.bool, device=device).tril(num_keys - (stop - start))


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
