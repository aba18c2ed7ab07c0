"""The mask of a layout through FlashAttention-4's block-sparse kernels, called without FlexAttention in between.

FlexAttention's FLASH backend runs the same kernels, but compiles them again for every length and chooses their tiles
itself. Here one compiled kernel takes any length, and its mask is two intervals a query.

Shape suffixes: B batch, H query heads, G KV heads, N queries, S sink, E extended keys, D head size.
"""

from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention.layout import TILE, KVLayout, tile_lists, visible_bounds
from lrsa_lightning.attention.recently_used import recently_used
from lrsa_lightning.attention.rule import LagRule

# The query tile of FlashAttention-4's Hopper backward by head size.
_BACKWARD_QUERY_TILE = {64: 128, 128: 64}
HEAD_DIMS = tuple(_BACKWARD_QUERY_TILE)


def attend(q_BHND: Tensor, k_BGED: Tensor, v_BGED: Tensor, layout: KVLayout, scale: float | None) -> Tensor:
    """Attention under the mask of a layout, [B, H, N, D]; differentiable.

    Args:
        q_BHND: queries, float16 or bfloat16, D in `HEAD_DIMS`; those before the layout's, if any, are the sink's own.
        k_BGED: keys in the layout's order.
        v_BGED: their values.
        layout: with tiles of `TILE`.
        scale: of the logits; 1 / sqrt(D) when None.
    """
    return _Attention.apply(*(z.transpose(1, 2) for z in (q_BHND, k_BGED, v_BGED)), layout, scale).transpose(1, 2)


def attend_causal(q_BHQD: Tensor, k_BGED: Tensor, v_BGED: Tensor, scale: float | None) -> Tensor:
    """Full causal attention of the newest Q of E tokens, [B, H, Q, D]; arguments as in `attend`."""
    from flash_attn.cute.interface import _flash_attn_fwd

    q_BQHD, k_BEGD, v_BEGD = (z.transpose(1, 2) for z in (q_BHQD, k_BGED, v_BGED))
    return _flash_attn_fwd(q_BQHD, k_BEGD, v_BEGD, softmax_scale=scale, causal=True)[0].transpose(1, 2)


class _Attention(torch.autograd.Function):
    """FlashAttention-4 on the layout's queries; those before them see the sink alone, causally.

    Both write into their part of one tensor: joining them would take memory for another.
    """

    @staticmethod
    def forward(ctx, q_BNHD: Tensor, k_BEGD: Tensor, v_BEGD: Tensor, layout: KVLayout, scale: float | None) -> Tensor:
        from flash_attn.cute.interface import _flash_attn_fwd

        out = q_BNHD.new_empty(q_BNHD.shape)
        before = q_BNHD.shape[1] - layout.num_queries
        lse = _flash_attn_fwd(
            q_BNHD[:, before:],
            k_BEGD,
            v_BEGD,
            softmax_scale=scale,
            mask_mod=_mask_mod(*_sizes(layout.rule)),
            aux_scalars=_lengths(layout),
            block_sparse_tensors=_tile_lists(layout, q_BNHD.device, TILE, False),
            return_lse=any(ctx.needs_input_grad),
            out=out[:, before:],
        )[1]
        if before:
            out[:, :before] = _sink_attention(*_sink_of(q_BNHD, k_BEGD, v_BEGD, layout), scale)
        ctx.save_for_backward(q_BNHD, k_BEGD, v_BEGD, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        from flash_attn.cute.interface import _flash_attn_bwd

        (q, k, v, out, lse), layout = ctx.saved_tensors, ctx.layout
        grad_q = torch.empty_like(q)
        before = q.shape[1] - layout.num_queries
        _, grad_k, grad_v = _flash_attn_bwd(
            q[:, before:],
            k,
            v,
            out[:, before:],
            grad_out[:, before:],
            lse,
            ctx.scale,
            mask_mod=_mask_mod(*_sizes(layout.rule)),
            aux_scalars=_lengths(layout),
            block_sparse_tensors=_tile_lists(layout, q.device, _BACKWARD_QUERY_TILE[q.shape[-1]], True),
            dq=grad_q[:, before:],
        )
        if before:
            sink = _sink_of(grad_q, grad_k, grad_v, layout)
            _add_sink_gradients(sink, _sink_of(q, k, v, layout), grad_out[:, :before], ctx.scale)
        return grad_q, grad_k, grad_v, None, None


def _sink_of(q_BNHD: Tensor, k_BEGD: Tensor, v_BEGD: Tensor, layout: KVLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Queries before the layout's, and the keys and values of the sink, or their gradients: views, [B, S, ., D]."""
    before = q_BNHD.shape[1] - layout.num_queries
    sink = slice(layout.num_duplicates, layout.num_duplicates + before)
    return q_BNHD[:, :before], k_BEGD[:, sink], v_BEGD[:, sink]


def _sink_attention(q_BSHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, scale: float | None) -> Tensor:
    q, k, v = (z.transpose(1, 2) for z in (q_BSHD, k_BSGD, v_BSGD))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)


def _add_sink_gradients(
    gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...], grad_out_BSHD: Tensor, scale: float | None
) -> None:
    """Writes the first queries' gradients and adds those of the sink's keys and values, which others see too."""
    with torch.enable_grad():
        inputs = [z.detach().requires_grad_() for z in inputs]
        out = _sink_attention(*inputs, scale)
    own = torch.autograd.grad(out, inputs, grad_out_BSHD)
    gradients[0].copy_(own[0])
    for gradient, part in zip(gradients[1:], own[1:], strict=True):
        gradient += part


@recently_used(size=lambda layout, device, query_tile, by_key: layout.tile_list_bytes(query_tile))
def _tile_lists(layout: KVLayout, device: torch.device, query_tile: int, by_key: bool):
    """Key tiles of each query tile, for the forward, or query tiles of each key tile, for the backward."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    seen, full = layout.tiles(query_tile, device)
    chosen = (z.T if by_key else z for z in (seen & ~full, full))
    lists = (z for tiles in chosen for z in tile_lists(tiles))
    return BlockSparseTensorsTorch(*lists, block_size=(query_tile, TILE))


@lru_cache(maxsize=1024)  # plain numbers; packed rows have many lengths
def _lengths(layout: KVLayout) -> tuple:
    """What the mask depends on beside the rule: arguments of the kernel, and slow enough to make to be kept."""
    from cutlass import Int32

    return Int32(layout.first_query), Int32(layout.num_duplicates), Int32(layout.diagonal)


def _sizes(rule: LagRule) -> tuple[int, int, int]:
    return rule.sink_size, rule.lag_size, rule.kept


@cache
def _mask_mod(sink_size: int, lag_size: int, kept: int):
    """`KVLayout.visible` for the kernel, compiled for each triple of sizes, whatever the scorer."""
    from cutlass import Int32, cute
    from cutlass import max as larger
    from cutlass import min as smaller
    from flash_attn.cute.utils import scalar_to_ssa

    rule = LagRule(sink_size, lag_size, kept)

    @cute.jit
    def visible(batch, head, query, key, seqlen_info, aux_tensors, lengths):
        first_query, num_duplicates, diagonal = lengths
        num_compact, raw_begin = visible_bounds(rule, query[0] + first_query, smaller, larger)
        compact_end = num_compact + num_duplicates
        raw_begin = raw_begin + (diagonal - first_query)
        sees_raw = (key >= scalar_to_ssa(raw_begin, Int32)) & (key <= scalar_to_ssa(query[0] + diagonal, Int32))
        return (key < scalar_to_ssa(compact_end, Int32)) | sees_raw

    return visible
