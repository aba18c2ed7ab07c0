"""LRSA chunk by chunk, as the paper prefills: runs on CPU and CUDA through SDPA, on NPU through its fused attention.

A fill takes the queries of one or several chunks. Their keys are the kept prefix, the previous chunk and their own
chunks, in order. So a fill of one chunk is a lower-right causal attention.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, C compact keys (sink, then kept
tokens), R raw keys, Q queries.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention.layer_call import in_computed_dtype
from lrsa_lightning.attention.layout import Fill, KVLayout
from lrsa_lightning.attention.packing import sample_by_sample
from lrsa_lightning.attention.rule import gather_tokens, rule_of


@sample_by_sample
def lrsa_attention(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    mode_or_rule: Any,
    scale: float | None = None,
    *,
    layer_idx: int | None = None,
    chunks_per_fill: int | None = None,
) -> Tensor:
    """Masked training forward.

    Args:
        q_BHND: queries after RoPE, [B, H, N, D].
        k_BGND: keys after RoPE, [B, G, N, D], H a multiple of G.
        v_BGND: values, [B, G, N, D].
        mode_or_rule: a `LagRule`, or the `LRSA` that has one.
        scale: of the logits; 1 / sqrt(D) when None.
        layer_idx: the decoder layer.
        chunks_per_fill: chunks whose queries share one attention call; the mode's, or 1, when None.
        cu_seqlens: boundaries of the samples in each row, from 0 to N, for packed rows; None for one sample a row.

    Returns:
        [B, H, N, D] in the dtype of the queries; differentiable in q, k and v.
    """
    rule = rule_of(mode_or_rule, layer_idx)
    idx_BGC = rule.select(k_BGND, v_BGND, layer_idx or 0)
    compact = gather_tokens(k_BGND, idx_BGC), gather_tokens(v_BGND, idx_BGC)
    layout = KVLayout.of_sequence(rule, k_BGND.shape[2])
    chunks_per_fill = chunks_per_fill or getattr(mode_or_rule, "chunks_per_fill", 1)
    return attend(q_BHND, compact, (k_BGND, v_BGND), layout, scale, chunks_per_fill)


def attend(
    q_BHQD: Tensor,
    compact: tuple[Tensor, Tensor],
    raw: tuple[Tensor, Tensor],
    layout: KVLayout,
    scale: float | None = None,
    chunks_per_fill: int = 1,
) -> Tensor:
    """Attention of Q consecutive queries over their compact and their raw keys.

    Args:
        q_BHQD: queries.
        compact: keys and values [B, G, C, D] of the sink and of the kept tokens, in order.
        raw: keys and values [B, G, R, D] from the layout's first raw position on; the queries' own come last.
        layout: of these keys, without padding and duplicates.
        scale: of the logits; 1 / sqrt(D) when None.
        chunks_per_fill: chunks whose queries share one SDPA call.

    Returns:
        [B, H, Q, D].
    """
    q_BHQD, *parts = (in_computed_dtype(z) for z in (q_BHQD, *compact, *raw))
    if q_BHQD.device.type == "npu":  # its attention takes all fills of one chunk at once
        from lrsa_lightning.attention.fill_npu import FusedFills

        return FusedFills.apply(q_BHQD, *parts, _fills(layout, 1), scale)
    return _Fills.apply(q_BHQD, *parts, _fills(layout, chunks_per_fill), scale)


def attend_causal(q_BHQD: Tensor, k_BGED: Tensor, v_BGED: Tensor, scale: float | None = None) -> Tensor:
    """Attention of the newest Q of E tokens over all before them, [B, H, Q, D], without a mask in memory on CUDA."""
    num_queries, num_keys, gqa = q_BHQD.shape[2], k_BGED.shape[2], q_BHQD.shape[1] != k_BGED.shape[1]
    if num_queries in (1, num_keys):
        is_causal = num_queries > 1
        return scaled_dot_product_attention(q_BHQD, k_BGED, v_BGED, is_causal=is_causal, scale=scale, enable_gqa=gqa)
    mask = causal_lower_right(num_queries, num_keys)
    return scaled_dot_product_attention(q_BHQD, k_BGED, v_BGED, attn_mask=mask, scale=scale, enable_gqa=gqa)


@lru_cache(maxsize=256)
def _fills(layout: KVLayout, chunks_per_fill: int) -> tuple[Fill, ...]:
    return tuple(layout.fills(chunks_per_fill))


class _Fills(torch.autograd.Function):
    """All fills of a sequence. The backward joins each fill's keys again: kept, they would grow with N squared."""

    @staticmethod
    def forward(ctx, q, k_compact, v_compact, k_raw, v_raw, fills: Sequence[Fill], scale: float | None):
        ctx.save_for_backward(q, k_compact, v_compact, k_raw, v_raw)
        ctx.fills, ctx.scale = fills, scale
        out = q.new_empty(*q.shape[:-1], v_raw.shape[-1])
        for fill in fills:
            k, v = fill.join(k_compact, k_raw), fill.join(v_compact, v_raw)
            out[:, :, fill.queries] = sdpa(q[:, :, fill.queries], k, v, fill.layout.mask(q.device), scale)
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
                out = sdpa(*parts, fill.layout.mask(q.device), ctx.scale)
            grad_q[:, :, fill.queries], *joined = torch.autograd.grad(out, parts, grad_out[:, :, fill.queries])
            fill.add_gradient(joined[0], *grads[:2])
            fill.add_gradient(joined[1], *grads[2:])
        grad_kc, grad_kr, grad_vc, grad_vr = (grad.to(q.dtype) for grad in grads)
        return grad_q, grad_kc, grad_vc, grad_kr, grad_vr, None, None


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """SDPA with H a multiple of G; `mask` True where the query sees the key, None hides nothing."""
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
