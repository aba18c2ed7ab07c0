"""Triton kernels around the attention: a fused selection, and [compact ; raw] written in one pass.

The backward of the latter reads instead of scattering: kept positions are unique, so the inverse index gives each
token its one compact key, without atomics and so without an order to depend on.

Shape suffixes: B batch, G KV heads, N tokens, D head size, T scored chunks, L lag, C compact keys, E = C + N.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrsa_lightning.attention.lagkv import Chunking

_BOUND = tl.constexpr(1e15)  # as in lagkv


@triton.jit
def _range_kernel(
    k_ptr, v_ptr, low_ptr, span_ptr,
    stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
    groups, num_scored, sink, LAG: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Half the minimum and half the range of each channel over the chunk behind each scored one."""
    chunk, row, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, g = row // groups, row % groups
    if which == 0:
        base = k_ptr + b.to(tl.int64) * stride_kb + g * stride_kg
        stride_n = stride_kn
    else:
        base = v_ptr + b.to(tl.int64) * stride_vb + g * stride_vg
        stride_n = stride_vn
    start = sink + (chunk + 1) * LAG
    channel = tl.arange(0, DIM)
    low = tl.full([DIM], float("inf"), tl.float32)
    high = tl.full([DIM], float("-inf"), tl.float32)
    for offset in range(0, LAG, ROWS):
        token = offset + tl.arange(0, ROWS)
        at = base + (start + token).to(tl.int64)[:, None] * stride_n + channel[None, :]
        inside = (token < LAG)[:, None]
        low = tl.minimum(low, tl.min(tl.load(at, mask=inside, other=float("inf")).to(tl.float32), axis=0))
        high = tl.maximum(high, tl.max(tl.load(at, mask=inside, other=float("-inf")).to(tl.float32), axis=0))
    out = ((which * tl.num_programs(1) + row) * num_scored + chunk) * DIM + channel
    tl.store(low_ptr + out, low * 0.5)
    tl.store(span_ptr + out, high * 0.5 - low * 0.5)


@triton.jit
def _std_kernel(
    k_ptr, v_ptr, low_ptr, span_ptr, std_ptr,
    stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
    groups, num_scored, sink, LAG: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Standard deviation over the channels of each normalised token (LagKV, eq. 4-6)."""
    tile, row, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles: tl.constexpr = (LAG + ROWS - 1) // ROWS
    chunk, offset = tile // tiles, (tile % tiles) * ROWS
    b, g = row // groups, row % groups
    if which == 0:
        base = k_ptr + b.to(tl.int64) * stride_kb + g * stride_kg
        stride_n = stride_kn
    else:
        base = v_ptr + b.to(tl.int64) * stride_vb + g * stride_vg
        stride_n = stride_vn
    channel = tl.arange(0, DIM)
    stats = ((which * tl.num_programs(1) + row) * num_scored + chunk) * DIM + channel
    low, span = tl.load(low_ptr + stats), tl.load(span_ptr + stats)
    token = offset + tl.arange(0, ROWS)
    inside = token < LAG
    at = base + (sink + chunk * LAG + token).to(tl.int64)[:, None] * stride_n + channel[None, :]
    z = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32) * 0.5
    flat = span == 0.0
    z = tl.div_rn(z - low[None, :], tl.where(flat, 1.0, span)[None, :])
    z = tl.where(flat[None, :], 0.0, tl.minimum(tl.maximum(z, -_BOUND), _BOUND))
    centred = z - (tl.sum(z, axis=1) / DIM)[:, None]
    std = tl.sqrt(tl.sum(centred * centred, axis=1) / (DIM - 1))
    out = ((which * tl.num_programs(1) + row) * num_scored + chunk) * LAG + token
    tl.store(std_ptr + out, std, mask=inside)


@triton.jit
def _keep_kernel(
    std_ptr, idx_ptr, inverse_ptr, v_weight, num_tokens, num_scored, sink, num_compact,
    LAG: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr, SINK_BLOCK: tl.constexpr,
):  # fmt: skip
    """Softmax and sum (eq. 7-8), then the positions of a chunk's KEPT highest scores, ascending."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, BLOCK)
    inside = token < LAG
    at_k = (row * num_scored + chunk) * LAG + token
    at_v = ((tl.num_programs(1) + row) * num_scored + chunk) * LAG + token
    std_k = tl.load(std_ptr + at_k, mask=inside, other=float("-inf"))
    std_v = tl.load(std_ptr + at_v, mask=inside, other=float("-inf"))
    exp_k, exp_v = tl.exp(std_k - tl.max(std_k, axis=0)), tl.exp(std_v - tl.max(std_v, axis=0))
    score = exp_k / tl.sum(exp_k, axis=0) + v_weight * (exp_v / tl.sum(exp_v, axis=0))
    # Floats order as their bits do once the negative ones are turned round; find the KEPT-th largest bit by bit.
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(inside, bits, -2147483648)
    threshold = tl.full([1], -2147483648, tl.int32)
    for i in tl.static_range(32):
        # The highest bit is the sign: setting it means going from the negative numbers to 0.
        candidate = (threshold ^ (-2147483648)) if i == 0 else (threshold | (1 << (31 - i)))
        threshold = tl.where(tl.sum((bits >= candidate).to(tl.int32), axis=0) >= KEPT, candidate, threshold)
    above, equal = bits > threshold, bits == threshold
    room = KEPT - tl.sum(above.to(tl.int32), axis=0)
    keep = inside & (above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room)))
    position = sink + chunk * LAG + token
    compact = sink + chunk * KEPT + tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(idx_ptr + row * num_compact + compact, position.to(tl.int64), mask=keep)
    tl.store(inverse_ptr + row.to(tl.int64) * num_tokens + position, tl.where(keep, compact, -1), mask=inside)
    if chunk == 0:
        first = tl.arange(0, SINK_BLOCK)
        tl.store(idx_ptr + row * num_compact + first, first.to(tl.int64), mask=first < sink)
        tl.store(inverse_ptr + row.to(tl.int64) * num_tokens + first, first, mask=first < sink)


@triton.jit
def _extend_kernel(
    z_ptr, idx_ptr, ext_ptr, stride_b, stride_g, stride_n,
    groups, num_tokens, num_compact, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes [compact ; raw]."""
    tile, row = tl.program_id(0), tl.program_id(1)
    num_ext = num_compact + num_tokens
    j = tile * ROWS + tl.arange(0, ROWS)
    inside = (j < num_ext)[:, None]
    kept = tl.load(idx_ptr + row.to(tl.int64) * num_compact + j, mask=j < num_compact, other=0)
    token = tl.where(j < num_compact, kept, (j - num_compact).to(tl.int64))
    channel = tl.arange(0, DIM)
    base = z_ptr + (row // groups).to(tl.int64) * stride_b + (row % groups) * stride_g
    z = tl.load(base + token[:, None] * stride_n + channel[None, :], mask=inside)
    tl.store(ext_ptr + (row.to(tl.int64) * num_ext + j)[:, None] * DIM + channel[None, :], z, mask=inside)


@triton.jit
def _extend_backward_kernel(
    grad_ext_ptr, inverse_ptr, grad_ptr, stride_b, stride_g, stride_n,
    groups, num_tokens, num_compact, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each token's gradient: its raw key's, plus its compact one's if it was kept."""
    tile, row = tl.program_id(0), tl.program_id(1)
    token = tile * ROWS + tl.arange(0, ROWS)
    inside = token < num_tokens
    compact = tl.load(inverse_ptr + row.to(tl.int64) * num_tokens + token, mask=inside, other=-1)
    channel = tl.arange(0, DIM)[None, :]
    base = grad_ext_ptr + (row // groups).to(tl.int64) * stride_b + (row % groups) * stride_g + channel
    raw_at = base + (num_compact + token).to(tl.int64)[:, None] * stride_n
    grad = tl.load(raw_at, mask=inside[:, None], other=0.0).to(tl.float32)
    compact_at = base + compact.to(tl.int64)[:, None] * stride_n
    grad += tl.load(compact_at, mask=(compact >= 0)[:, None], other=0.0).to(tl.float32)
    out = (row.to(tl.int64) * num_tokens + token)[:, None] * DIM + channel
    tl.store(grad_ptr + out, grad, mask=inside[:, None])


def select(k_BGND: Tensor, v_BGND: Tensor, chunking: Chunking, v_weight: float) -> tuple[Tensor, Tensor]:
    """`lagkv.select` in three launches; at least one chunk must be compressed, and some of it kept.

    Args:
        k_BGND: keys after RoPE, D a power of two.
        v_BGND: values.
        chunking: the rule's sizes.
        v_weight: weight of the values' score.

    Returns:
        int64 [B, G, C], the positions of the compact keys, and int32 [B, G, N], its inverse: the compact place of
        each token, -1 for those dropped.
    """
    # Under autocast the keys leave RoPE in float32 while the values are bf16: widening is exact.
    dtype = torch.promote_types(k_BGND.dtype, v_BGND.dtype)
    k, v = _rows(k_BGND.to(dtype)), _rows(v_BGND.to(dtype))
    batch, groups, num_tokens, dim = k.shape
    rows, num_scored = batch * groups, chunking.compressed_chunks(num_tokens)
    sink, lag, num_compact = chunking.sink_size, chunking.lag_size, chunking.compact_len(num_tokens)
    idx = torch.empty(batch, groups, num_compact, dtype=torch.int64, device=k.device)
    inverse = torch.full((batch, groups, num_tokens), -1, dtype=torch.int32, device=k.device)
    # The dtype is named because Lightning's bf16-true changes the default one.
    low, span = torch.empty(2, 2, rows, num_scored, dim, dtype=torch.float32, device=k.device)
    std = torch.empty(2, rows, num_scored, lag, dtype=torch.float32, device=k.device)
    strides = *k.stride()[:3], *v.stride()[:3]
    tile = 32
    _range_kernel[(num_scored, rows, 2)](
        k, v, low, span, *strides, groups, num_scored, sink, lag, dim, ROWS=128, num_warps=8
    )
    _std_kernel[(num_scored * triton.cdiv(lag, tile), rows, 2)](
        k, v, low, span, std, *strides, groups, num_scored, sink, lag, dim, ROWS=tile, num_warps=4
    )
    _keep_kernel[(num_scored, rows)](
        std, idx, inverse, v_weight, num_tokens, num_scored, sink, num_compact,
        lag, triton.next_power_of_2(lag), chunking.kept, max(16, triton.next_power_of_2(sink)), num_warps=4,
    )  # fmt: skip
    return idx, inverse


class Extend(torch.autograd.Function):
    """[compact ; raw] of keys or values: z [B, G, N, D], idx [B, G, C], inverse [B, G, N] -> [B, G, C + N, D]."""

    @staticmethod
    def forward(ctx, z_BGND: Tensor, idx_BGC: Tensor, inverse_BGN: Tensor) -> Tensor:
        z = _rows(z_BGND)
        batch, groups, num_tokens, dim = z.shape
        ctx.num_compact = num_compact = idx_BGC.shape[-1]
        ctx.save_for_backward(inverse_BGN)
        ext = z.new_empty(batch, groups, num_compact + num_tokens, dim)
        grid = (triton.cdiv(num_compact + num_tokens, 64), batch * groups)
        _extend_kernel[grid](
            z, idx_BGC, ext, *z.stride()[:3], groups, num_tokens, num_compact, dim, ROWS=64, num_warps=4
        )
        return ext

    @staticmethod
    def backward(ctx, grad_BGED: Tensor):
        (inverse,) = ctx.saved_tensors
        grad_ext = _rows(grad_BGED)
        batch, groups, num_ext, dim = grad_ext.shape
        num_tokens = num_ext - ctx.num_compact
        grad = grad_ext.new_empty(batch, groups, num_tokens, dim)
        _extend_backward_kernel[(triton.cdiv(num_tokens, 64), batch * groups)](
            grad_ext, inverse, grad, *grad_ext.stride()[:3], groups, num_tokens, ctx.num_compact, dim,
            ROWS=64, num_warps=4,
        )  # fmt: skip
        return grad, None, None


def _rows(z_BGND: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, else a copy."""
    return z_BGND if z_BGND.stride(-1) == 1 else z_BGND.contiguous()
