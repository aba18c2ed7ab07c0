"""LRSA on CUDA: FlexAttention over [compact ; raw] under one static block mask.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size.
"""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention.lagkv import Chunking, gather_tokens

log = logging.getLogger(__name__)

Kernel = Literal["FLASH", "TRITON"]


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
        kernel: backend of FlexAttention: FLASH (package flash-attn-4; float16 and bfloat16) or TRITON; the faster
            one that this machine has when None.

    Other arguments and the result as in `fill.lrsa_attention`.
    """
    chunking = mode.chunking(layer_idx)
    num_tokens = k_BGND.shape[2]
    if chunking.compressed_chunks(num_tokens) == 0:
        gqa = q_BHND.shape[1] != k_BGND.shape[1]
        return scaled_dot_product_attention(q_BHND, k_BGND, v_BGND, is_causal=True, scale=scale, enable_gqa=gqa)
    # Imported here: Triton is not on every machine, and FlexAttention's import takes a second.
    from lrsa_lightning.attention.block_mask import lrsa_block_mask

    idx, inverse = _select(k_BGND.detach(), v_BGND.detach(), mode, chunking, layer_idx)
    # Autocast knows SDPA but not FlexAttention. The selection above saw the keys as they were.
    if torch.is_autocast_enabled("cuda"):
        q_BHND, k_BGND, v_BGND = (z.to(torch.get_autocast_dtype("cuda")) for z in (q_BHND, k_BGND, v_BGND))
    kernel = kernel or pick_kernel(q_BHND.device, q_BHND.dtype, q_BHND.shape[-1])
    return _compiled()(
        q_BHND,
        _extend(k_BGND, idx, inverse),
        _extend(v_BGND, idx, inverse),
        block_mask=lrsa_block_mask(num_tokens, chunking, q_BHND.device),
        scale=scale,
        enable_gqa=q_BHND.shape[1] != k_BGND.shape[1],
        kernel_options={"BACKEND": "FLASH"} if kernel == "FLASH" else None,
    )


def _select(k_BGND: Tensor, v_BGND: Tensor, mode, chunking: Chunking, layer_idx: int | None) -> tuple[Tensor, Tensor]:
    """Positions of the compact keys and their inverse, fused where there is a kernel for the scorer."""
    if mode.scorer == "lagkv" and chunking.kept and _is_power_of_two(k_BGND.shape[-1]):
        from lrsa_lightning.attention import kernels

        return kernels.select(k_BGND, v_BGND, chunking, mode.v_weight)
    idx = mode.select(k_BGND, v_BGND, layer_idx)
    inverse = torch.full(k_BGND.shape[:3], -1, dtype=torch.int32, device=k_BGND.device)
    places = torch.arange(idx.shape[-1], dtype=torch.int32, device=idx.device).expand_as(idx)
    return idx, inverse.scatter_(2, idx, places)


def _extend(z_BGND: Tensor, idx_BGC: Tensor, inverse_BGN: Tensor) -> Tensor:
    """[compact ; raw] of keys or values, [B, G, C + N, D]."""
    if _is_power_of_two(z_BGND.shape[-1]):
        from lrsa_lightning.attention.kernels import Extend

        return Extend.apply(z_BGND, idx_BGC, inverse_BGN)
    return torch.cat([gather_tokens(z_BGND, idx_BGC), z_BGND], dim=2)


def _is_power_of_two(dim: int) -> bool:
    """Head sizes the Triton kernels take: they hold a token's channels in one block."""
    return dim & (dim - 1) == 0


@cache
def pick_kernel(device: torch.device, dtype: torch.dtype, head_dim: int = 128) -> Kernel:
    """FLASH where flash-attn-4 is installed and GPU (Hopper or newer), dtype and head size are ones it takes."""
    has_package = find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None
    new_enough = torch.cuda.get_device_capability(device)[0] >= 9
    fits = has_package and new_enough and dtype in (torch.float16, torch.bfloat16) and head_dim in (64, 128)
    kernel: Kernel = "FLASH" if fits else "TRITON"
    package = "found" if has_package else "not found"
    gpu = torch.cuda.get_device_name(device)
    log.info("FlexAttention backend %s (flash-attn-4 %s, %s, %s, D = %d)", kernel, package, gpu, dtype, head_dim)
    return kernel


@cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    # One graph a shape and mask: with automatic dynamic shapes compilation was seen to hang, and past the limit
    # FlexAttention would fall back to materialising all scores.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)
