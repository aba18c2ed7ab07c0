"""The static mask through FlashAttention-4's block-sparse kernels, called without FlexAttention in between.

FlexAttention's FLASH backend runs the same kernels, but compiles them anew for every length and gives them tiles it
chooses itself. Here one compiled kernel takes any length, and its mask is two intervals a query.

Shape suffixes: B batch, H query heads, G KV heads, Q queries, E extended keys, D head size.
"""

from functools import cache, lru_cache

import torch
from torch import Tensor

from lrsa_lightning.attention.block_mask import TILE, StaticMask, tile_lists
from lrsa_lightning.attention.lagkv import Chunking

# The query tile of FlashAttention-4's Hopper backward by head size.
_BACKWARD_QUERY_TILE = {64: 128, 128: 64}
HEAD_DIMS = tuple(_BACKWARD_QUERY_TILE)


def attend(q_BHQD: Tensor, k_BGED: Tensor, v_BGED: Tensor, mask: StaticMask, scale: float | None) -> Tensor:
    """Attention under `mask`, [B, H, Q, D]; differentiable.

    Args:
        q_BHQD: queries, float16 or bfloat16, D in `HEAD_DIMS`.
        k_BGED: keys as `mask` lays them out.
        v_BGED: their values.
        mask: who sees whom.
        scale: of the logits; 1 / sqrt(D) when None.
    """
    from flash_attn.cute import flash_attn_func

    device, backward = q_BHQD.device, None
    if torch.is_grad_enabled():
        backward = _tile_lists(mask, device, _BACKWARD_QUERY_TILE[q_BHQD.shape[-1]], by_key=True)
    out_BQHD, _ = flash_attn_func(
        *(z.transpose(1, 2) for z in (q_BHQD, k_BGED, v_BGED)),
        softmax_scale=scale,
        mask_mod=_mask_mod(mask.chunking),
        aux_scalars=_lengths(mask),
        block_sparse_tensors=_tile_lists(mask, device, TILE, by_key=False),
        block_sparse_tensors_bwd=backward,
    )
    return out_BQHD.transpose(1, 2)


@lru_cache(maxsize=16)
def _tile_lists(mask: StaticMask, device: torch.device, query_tile: int, by_key: bool):
    """Key tiles of each query tile, for the forward, or query tiles of each key tile, for the backward."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    seen, full = mask.tiles(query_tile)
    chosen = (z.T if by_key else z for z in (seen & ~full, full))
    tensors = (t.to(device) for z in chosen for t in tile_lists(z))
    return BlockSparseTensorsTorch(*tensors, block_size=(query_tile, TILE))


@lru_cache(maxsize=16)
def _lengths(mask: StaticMask) -> tuple:
    """What the mask must know of a length: arguments of the kernel, and slow enough to make to be kept."""
    from cutlass import Int32

    return Int32(mask.first_query), Int32(mask.num_twins), Int32(mask.diagonal)


@cache
def _mask_mod(chunking: Chunking):
    """`StaticMask.visible` for the kernel; the pattern's sizes are constants of it."""
    from cutlass import Int32, cute
    from cutlass import max as larger
    from cutlass import min as smaller
    from flash_attn.cute.utils import scalar_to_ssa

    sink, lag, kept = chunking.sink_size, chunking.lag_size, chunking.kept

    @cute.jit
    def visible(batch, head, query, key, seqlen_info, aux_tensors, lengths):
        first_query, num_twins, diagonal = lengths
        position = query[0] + first_query
        compressed = larger((position - sink) // lag - 1, 0)
        compact_end = smaller(position + 1, compressed * kept + sink) + num_twins
        raw_begin = compressed * lag + (diagonal - first_query + sink)
        sees_raw = (key >= scalar_to_ssa(raw_begin, Int32)) & (key <= scalar_to_ssa(query[0] + diagonal, Int32))
        return (key < scalar_to_ssa(compact_end, Int32)) | sees_raw

    return visible
