"""LRSA on CUDA: [compact ; raw] under one static block mask, by FlashAttention-4 or by FlexAttention.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, Q queries, E extended keys (`KVLayout`).
"""

import logging
from dataclasses import replace
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention import flash
from lrsa_lightning.attention.layout import TILE, KVLayout, tile_lists
from lrsa_lightning.attention.packing import sample_by_sample
from lrsa_lightning.attention.recently_used import recently_used
from lrsa_lightning.attention.rule import LagRule, gather_tokens, rule_of
from lrsa_lightning.attention.scorers import LagKVScorer

log = logging.getLogger(__name__)

Kernel = Literal["FLASH", "TRITON"]
# From here on the device saves more than the launches for the sink's own queries cost the host.
_AFTER_SINK_FROM = 32768
# As exact as without tensor cores, where triton 3.6 gets single rows wrong under this mask (H200).
_FLOAT32_AS_THREE_PRODUCTS = {"FLOAT32_PRECISION": "'tf32x3'"}


def _compiled_length(q_BHND: Tensor, kernel: Kernel | None = None, **_) -> int:
    """Tokens that a sample of a packed row is padded to. Triton compiles for each length: it gets eight an octave."""
    num_tokens = q_BHND.shape[2]
    if (kernel or pick_kernel(q_BHND)) == "FLASH":
        return num_tokens
    step = 2 ** max(0, num_tokens.bit_length() - 4)
    return -(-num_tokens // step) * step


@partial(sample_by_sample, padded_length=_compiled_length)
def lrsa_attention(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    mode_or_rule: Any,
    scale: float | None = None,
    *,
    layer_idx: int | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Masked training forward on a CUDA device.

    Args:
        kernel: FLASH (package flash-attn-4; float16 and bfloat16) or FlexAttention's TRITON; the faster one that this
            machine has when None.

    Other arguments and the result as in `fill.lrsa_attention`.
    """
    rule, num_tokens = rule_of(mode_or_rule, layer_idx), k_BGND.shape[2]
    if rule.compressed_chunks(num_tokens) == 0:
        gqa = q_BHND.shape[1] != k_BGND.shape[1]
        return scaled_dot_product_attention(q_BHND, k_BGND, v_BGND, is_causal=True, scale=scale, enable_gqa=gqa)
    idx, inverse = _select(k_BGND.detach(), v_BGND.detach(), rule, layer_idx or 0)
    # Autocast knows SDPA but not FlexAttention. The selection above saw the keys as they were.
    if torch.is_autocast_enabled("cuda"):
        q_BHND, k_BGND, v_BGND = (z.to(torch.get_autocast_dtype("cuda")) for z in (q_BHND, k_BGND, v_BGND))
    kernel = kernel or pick_kernel(q_BHND)
    layout = _training_layout(num_tokens, rule, kernel, torch.is_grad_enabled())
    return _run(kernel, q_BHND, *_extend(k_BGND, v_BGND, idx, inverse, layout), layout, scale)


def attend_segment(
    q_BHQD: Tensor,
    compact: tuple[Tensor, Tensor],
    raw: tuple[Tensor, Tensor],
    layout: KVLayout,
    scale: float | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attention of Q consecutive tokens over their compact and their raw keys, [B, H, Q, D].

    Arguments as in `fill.attend`, ``kernel`` as in `lrsa_attention`; differentiable. In training, segments recur from
    step to step, so Triton may compile for each. Prompts differ in length, so a cache's newest tokens take FLASH alone.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        q_BHQD, compact, raw = q_BHQD.to(dtype), [z.to(dtype) for z in compact], [z.to(dtype) for z in raw]
    kernel, layout = kernel or pick_kernel(q_BHQD), replace(layout, tile=TILE)
    if kernel == "FLASH" and torch.is_grad_enabled():
        layout = layout.with_duplicates()
    k_BGED, v_BGED = (layout.lay_out(*parts) for parts in zip(compact, raw, strict=True))
    return _run(kernel, q_BHQD, k_BGED, v_BGED, layout, scale)


def _run(kernel: Kernel, q_BHQD: Tensor, k_BGED: Tensor, v_BGED: Tensor, layout: KVLayout, scale) -> Tensor:
    if kernel == "FLASH":
        return flash.attend(q_BHQD, k_BGED, v_BGED, layout, scale)
    return _flex_attention()(
        q_BHQD,
        k_BGED,
        v_BGED,
        block_mask=block_mask(layout, q_BHQD.device),
        scale=scale,
        enable_gqa=q_BHQD.shape[1] != k_BGED.shape[1],
        kernel_options=_FLOAT32_AS_THREE_PRODUCTS,
    )


@lru_cache(maxsize=1024)  # plain numbers; packed rows have many lengths
def _training_layout(num_tokens: int, rule: LagRule, kernel: Kernel, has_backward: bool) -> KVLayout:
    if kernel == "TRITON":
        return KVLayout.of_sequence(rule, num_tokens, TILE)
    # Chunks that fill tiles save tiles, but the sink's own queries then cost launches.
    pays = num_tokens >= _AFTER_SINK_FROM and rule.lag_size % TILE == 0
    layout = (KVLayout.after_sink if pays else KVLayout.of_sequence)(rule, num_tokens, TILE)
    return layout.with_duplicates() if has_backward else layout


@recently_used(size=lambda layout, device: 2 * layout.tile_list_bytes())  # by query tile, and by key tile
def block_mask(layout: KVLayout, device: torch.device):
    """The mask of a layout as FlexAttention's BlockMask.

    `create_block_mask` would evaluate every element (128 GiB at 128K tokens). Here the tiles follow from the layout's
    intervals in milliseconds.
    """
    from torch.nn.attention.flex_attention import BlockMask  # its import takes a second

    seen, full = layout.tiles(device=device)
    return BlockMask.from_kv_blocks(
        *tile_lists(seen & ~full),
        *tile_lists(full),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=lambda b, h, query, key: layout.visible(query, key),
        seq_lengths=(layout.num_queries, layout.num_keys),
    )


def _select(k_BGND: Tensor, v_BGND: Tensor, rule: LagRule, layer_idx: int) -> tuple[Tensor, Tensor]:
    """Positions of the compact keys and their inverse, fused where there is a kernel for the scorer."""
    if has_fused_selection(rule, k_BGND):
        from lrsa_lightning.attention import kernels

        return kernels.select(k_BGND, v_BGND, rule)
    idx = rule.select(k_BGND, v_BGND, layer_idx)
    inverse = torch.full(k_BGND.shape[:3], -1, dtype=torch.int32, device=k_BGND.device)
    places = torch.arange(idx.shape[-1], dtype=torch.int32, device=idx.device).expand_as(idx)
    return idx, inverse.scatter_(2, idx, places)


def has_fused_selection(rule: LagRule, k_BGND: Tensor) -> bool:
    """Whether `kernels.select` ranks as this rule does, and takes keys of this head size."""
    return isinstance(rule.scorer, LagKVScorer) and rule.kept > 0 and is_power_of_two(k_BGND.shape[-1])


def fused_keep_best(rule: LagRule, k_BGND: Tensor, v_BGND: Tensor) -> Tensor:
    """`LagRule.keep_best` by the fused kernel: int64 [B, G, T * M], given T + 1 complete chunks."""
    from lrsa_lightning.attention import kernels

    return kernels.select(k_BGND, v_BGND, replace(rule, sink_size=0))[0]


def _extend(
    k_BGND: Tensor, v_BGND: Tensor, idx_BGC: Tensor, inverse_BGN: Tensor, layout: KVLayout
) -> tuple[Tensor, Tensor]:
    """Keys and values in the layout's order, [B, G, E, D] each."""
    if is_power_of_two(k_BGND.shape[-1]):
        from lrsa_lightning.attention.kernels import Extend

        return Extend.apply(k_BGND, v_BGND, idx_BGC, inverse_BGN, layout)
    return tuple(layout.lay_out(gather_tokens(z, idx_BGC), z[:, :, layout.first_raw :]) for z in (k_BGND, v_BGND))


def is_power_of_two(dim: int) -> bool:
    """Head sizes that the Triton kernels take: they hold a token's channels in one block."""
    return dim & (dim - 1) == 0


def pick_kernel(q_BHND: Tensor) -> Kernel:
    """FLASH where it runs and may; its backward adds up dq in no fixed order, so not under deterministic algorithms."""
    # Under autocast RoPE leaves queries in float32, and the attention rounds them.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q_BHND.dtype
    flash_runs = _flash_runs(q_BHND.device, dtype, q_BHND.shape[-1])
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
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    return torch.compile(flex_attention, dynamic=False)
