"""LRSA on CUDA: [compact ; raw] under one static block mask, by FlashAttention-4 or by FlexAttention.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size.
"""

import logging
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention import flash
from lrsa_lightning.attention.block_mask import TILE, StaticMask, block_mask
from lrsa_lightning.attention.lagkv import Chunking, gather_tokens
from lrsa_lightning.attention.packing import sample_by_sample

log = logging.getLogger(__name__)

Kernel = Literal["FLASH", "TRITON"]
# From here on the device saves more than the sink's own queries cost the host.
_BEHIND_SINK_FROM = 32768
# As exact as without tensor cores, where triton 3.6 gets single rows wrong under this mask (H200).
_FLOAT32_AS_THREE_PRODUCTS = {"FLOAT32_PRECISION": "'tf32x3'"}


@sample_by_sample
def lrsa_attention(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    mode,
    scale: float | None = None,
    *,
    layer_idx: int | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Masked training forward of `mode` on a CUDA device.

    Args:
        kernel: FLASH (package flash-attn-4; float16 and bfloat16) or FlexAttention's TRITON; the faster one that this
            machine has when None.

    Other arguments and the result as in `fill.lrsa_attention`.
    """
    chunking = mode.chunking(layer_idx)
    num_tokens = k_BGND.shape[2]
    if chunking.compressed_chunks(num_tokens) == 0:
        gqa = q_BHND.shape[1] != k_BGND.shape[1]
        return scaled_dot_product_attention(q_BHND, k_BGND, v_BGND, is_causal=True, scale=scale, enable_gqa=gqa)
    idx, inverse = _select(k_BGND.detach(), v_BGND.detach(), mode, chunking, layer_idx)
    # Autocast knows SDPA but not FlexAttention. The selection above saw the keys as they were.
    if torch.is_autocast_enabled("cuda"):
        q_BHND, k_BGND, v_BGND = (z.to(torch.get_autocast_dtype("cuda")) for z in (q_BHND, k_BGND, v_BGND))
    kernel = kernel or pick_kernel(q_BHND)
    mask = _training_mask(num_tokens, chunking, kernel, torch.is_grad_enabled())
    return _run(kernel, q_BHND, *_extend(k_BGND, v_BGND, idx, inverse, mask), mask, scale)


def attend_stretch(
    q_BHQD: Tensor,
    compact: tuple[Tensor, Tensor],
    raw: tuple[Tensor, Tensor],
    raw_start: int,
    chunking: Chunking,
    scale: float | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention of Q consecutive tokens over the compact keys in front of them and raw ones, [B, H, Q, D].

    Arguments as in `fill.attend`, ``kernel`` as in `lrsa_attention`; differentiable. In training stretches recur from
    step to step, so Triton may compile for each; prompts differ in length, so a cache's newest tokens take FLASH alone.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        q_BHQD, compact, raw = q_BHQD.to(dtype), [z.to(dtype) for z in compact], [z.to(dtype) for z in raw]
    kernel, num_queries = kernel or pick_kernel(q_BHQD), q_BHQD.shape[2]
    first_query = raw_start + raw[0].shape[2] - num_queries
    mask = StaticMask(chunking, compact[0].shape[2], num_queries, first_query, raw_start)
    if kernel == "FLASH" and torch.is_grad_enabled():
        mask = mask.with_twins()
    k_BGED, v_BGED = (mask.lay_out(*parts) for parts in zip(compact, raw, strict=True))
    return _run(kernel, q_BHQD, k_BGED, v_BGED, mask, scale)


def _run(kernel: Kernel, q_BHQD: Tensor, k_BGED: Tensor, v_BGED: Tensor, mask: StaticMask, scale) -> Tensor:
    if kernel == "FLASH":
        return flash.attend(q_BHQD, k_BGED, v_BGED, mask, scale)
    return _flex_attention()(
        q_BHQD,
        k_BGED,
        v_BGED,
        block_mask=block_mask(mask, q_BHQD.device),
        scale=scale,
        enable_gqa=q_BHQD.shape[1] != k_BGED.shape[1],
        kernel_options=_FLOAT32_AS_THREE_PRODUCTS,
    )


@lru_cache(maxsize=8)
def _training_mask(num_tokens: int, chunking: Chunking, kernel: Kernel, has_backward: bool) -> StaticMask:
    if kernel == "TRITON":
        return StaticMask.of_sequence(num_tokens, chunking)
    # Chunks that lie on tiles save tiles, but the sink's own queries then cost launches.
    pays = num_tokens >= _BEHIND_SINK_FROM and chunking.lag_size % TILE == 0
    mask = (StaticMask.behind_sink if pays else StaticMask.of_sequence)(num_tokens, chunking)
    return mask.with_twins() if has_backward else mask


def _select(k_BGND: Tensor, v_BGND: Tensor, mode, chunking: Chunking, layer_idx: int | None) -> tuple[Tensor, Tensor]:
    """Positions of the compact keys and their inverse, fused where there is a kernel for the scorer."""
    if has_fused_selection(mode, k_BGND):
        from lrsa_lightning.attention import kernels

        return kernels.select(k_BGND, v_BGND, chunking, mode.v_weight)
    idx = mode.select(k_BGND, v_BGND, layer_idx)
    inverse = torch.full(k_BGND.shape[:3], -1, dtype=torch.int32, device=k_BGND.device)
    places = torch.arange(idx.shape[-1], dtype=torch.int32, device=idx.device).expand_as(idx)
    return idx, inverse.scatter_(2, idx, places)


def has_fused_selection(mode, k_BGND: Tensor) -> bool:
    """Whether `kernels.select` ranks as this mode does, and takes keys of this head size."""
    return mode.scorer == "lagkv" and mode.chunking().kept > 0 and _is_power_of_two(k_BGND.shape[-1])


def _extend(
    k_BGND: Tensor, v_BGND: Tensor, idx_BGC: Tensor, inverse_BGN: Tensor, mask: StaticMask
) -> tuple[Tensor, Tensor]:
    """Keys and values as `mask` lays them out, [B, G, E, D] each."""
    if _is_power_of_two(k_BGND.shape[-1]):
        from lrsa_lightning.attention.kernels import Extend

        return Extend.apply(k_BGND, v_BGND, idx_BGC, inverse_BGN, mask)
    return tuple(mask.lay_out(gather_tokens(z, idx_BGC), z[:, :, mask.first_raw :]) for z in (k_BGND, v_BGND))


def _is_power_of_two(dim: int) -> bool:
    """Head sizes the Triton kernels take: they hold a token's channels in one block."""
    return dim & (dim - 1) == 0


def pick_kernel(q_BHND: Tensor) -> Kernel:
    """FLASH where it runs and may; its backward adds up dq in no fixed order, so not under deterministic algorithms."""
    flash_runs = _flash_runs(q_BHND.device, q_BHND.dtype, q_BHND.shape[-1])
    return "FLASH" if flash_runs and not torch.are_deterministic_algorithms_enabled() else "TRITON"


@cache
def _flash_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash-attn-4 is installed and takes this GPU (Hopper), dtype and head size. Said once in the log."""
    has_package = find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    fits = has_package and is_hopper and dtype in (torch.float16, torch.bfloat16) and head_dim in flash.HEAD_DIMS
    package = "found" if has_package else "not found"
    gpu = torch.cuda.get_device_name(device)
    kernel = "FLASH" if fits else "TRITON"
    log.info("LRSA kernel %s (flash-attn-4 %s, %s, %s, D = %d)", kernel, package, gpu, dtype, head_dim)
    return fits


@cache
def _flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    # One graph a shape and mask: with automatic dynamic shapes compilation was seen to hang, and past the limit
    # FlexAttention would fall back to materialising all scores.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)
