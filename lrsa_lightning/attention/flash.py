"""The mask of a layout through FlashAttention-4's block-sparse kernels, called without FlexAttention in between.

FlexAttention's FLASH backend runs the same kernels, but compiles them again for every length and chooses their tiles
itself. Here one compiled kernel takes any length, and its mask is two intervals a query.

Shape suffixes: B batch, H query heads, G KV heads, N queries, S sink, E extended keys, D head size.
"""

import os
from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention.layout import TILE, KVLayout, tile_lists
from lrsa_lightning.attention.recently_used import recently_used

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
    q_BQHD, k_BEGD, v_BEGD = (z.transpose(1, 2) for z in (q_BHQD, k_BGED, v_BGED))
    return _kernels()._flash_attn_fwd(q_BQHD, k_BEGD, v_BEGD, softmax_scale=scale, causal=True)[0].transpose(1, 2)


@cache
def _kernels() -> ModuleType:
    """flash-attn-4. It keeps compiled kernels in files, as Triton does: to compile them takes 20 s.

    A process may have imported it before, or said otherwise; then it stays as it is.
    """
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    from flash_attn.cute import interface

    return interface


class _Attention(torch.autograd.Function):
    """FlashAttention-4 on the layout's queries; those before them see the sink alone, causally.

    Both write into their part of one tensor: joining them would take memory for another.
    """

    @staticmethod
    def forward(ctx, q_BNHD: Tensor, k_BEGD: Tensor, v_BEGD: Tensor, layout: KVLayout, scale: float | None) -> Tensor:
        out = q_BNHD.new_empty(q_BNHD.shape)
        mask_mod, scalars = _mask(layout)
        before = q_BNHD.shape[1] - layout.num_queries
        lse = _kernels()._flash_attn_fwd(
            q_BNHD[:, before:],
            k_BEGD,
            v_BEGD,
            softmax_scale=scale,
            mask_mod=mask_mod,
            aux_scalars=scalars,
            block_sparse_tensors=_tile_lists(layout, q_BNHD.device, TILE, False),
            return_lse=True,  # without it another kernel is compiled
            out=out[:, before:],
        )[1]
        if before:
            out[:, :before] = _sink_attention(*_sink_of(q_BNHD, k_BEGD, v_BEGD, layout), scale)
        ctx.save_for_backward(q_BNHD, k_BEGD, v_BEGD, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        (q, k, v, out, lse), layout = ctx.saved_tensors, ctx.layout
        grad_q = torch.empty_like(q)
        mask_mod, scalars = _mask(layout)
        before = q.shape[1] - layout.num_queries
        _, grad_k, grad_v = _kernels()._flash_attn_bwd(
            q[:, before:],
            k,
            v,
            out[:, before:],
            grad_out[:, before:],
            lse,
            ctx.scale,
            mask_mod=mask_mod,
            aux_scalars=scalars,
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
    """Key tiles of each query tile, for the forward, or query tiles of each key tile, for the backward.

    All rows and heads share them. Strides of 0 say so: the kernel for one row is then also the kernel for several.
    """
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    seen, full = layout.tiles(query_tile, device)
    chosen = (z.T if by_key else z for z in (seen & ~full, full))
    lists = (z for tiles in chosen for z in tile_lists(tiles))
    shared = (z.as_strided(z.shape, (0, 0, *z.stride()[2:])) for z in lists)
    return BlockSparseTensorsTorch(*shared, block_size=(query_tile, TILE))


@lru_cache(maxsize=1024)  # plain numbers; packed rows have many lengths
def _mask(layout: KVLayout) -> tuple[Callable, tuple]:
    """The mask of a layout for the kernel, and its arguments, which are slow enough to make to be kept."""
    from lrsa_lightning.attention.flash_mask import mask_arguments, mask_mod

    return mask_mod(layout.rule.lag_size), mask_arguments(layout)
