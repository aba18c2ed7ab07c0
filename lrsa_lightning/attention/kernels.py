"""Triton kernels around the attention: a fused selection, and [compact ; padding ; raw] written in one pass.

The backward of the latter reads instead of scattering: kept positions are unique, so the inverse index gives each
token its one compact key, without atomics and so without an order to depend on.

Shape suffixes: B batch, G KV heads, N tokens, D head size, T scored chunks, L lag, C compact keys,
E extended keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule

_BOUND = tl.constexpr(1e15)  # as in scorers.py


@triton.jit
def chunk_std(base, stride_n, start, std_ptr, LAG: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Standard deviation over the channels of each token of a chunk, normalised by the next one (LagKV, eq. 4-6).

    The chunk begins at token ``start`` (int64) of ``base``; the result is float32 [LAG].
    """
    channel = tl.arange(0, DIM)
    # Reduced over the tokens at the end alone: that takes a barrier, which would stall the loads of every round.
    lows = tl.full([ROWS, DIM], float("inf"), tl.float32)
    highs = tl.full([ROWS, DIM], float("-inf"), tl.float32)
    for offset in range(0, LAG, ROWS):
        token = offset + tl.arange(0, ROWS)
        inside = (token < LAG)[:, None]
        z = tl.load(base + (start + LAG + token)[:, None] * stride_n + channel[None, :], mask=inside)
        z = z.to(tl.float32)
        lows = tl.minimum(lows, tl.where(inside, z, float("inf")))
        highs = tl.maximum(highs, tl.where(inside, z, float("-inf")))
    low = tl.min(lows, axis=0) * 0.5
    span = tl.max(highs, axis=0) * 0.5 - low
    flat = span == 0.0
    for offset in range(0, LAG, ROWS):
        token = offset + tl.arange(0, ROWS)
        at = base + (start + token)[:, None] * stride_n + channel[None, :]
        z = tl.load(at, mask=(token < LAG)[:, None], other=0.0).to(tl.float32) * 0.5
        z = tl.div_rn(z - low[None, :], tl.where(flat, 1.0, span)[None, :])
        z = tl.where(flat[None, :], 0.0, tl.minimum(tl.maximum(z, -_BOUND), _BOUND))
        centred = z - (tl.sum(z, axis=1) / DIM)[:, None]
        tl.store(std_ptr + token, tl.sqrt(tl.sum(centred * centred, axis=1) / (DIM - 1)), mask=token < LAG)


@triton.jit
def _std_kernel(
    k_ptr, v_ptr, std_ptr, stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
    groups, num_scored, sink, LAG: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`chunk_std` of each scored chunk."""
    chunk, row, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, g = (row // groups).to(tl.int64), row % groups
    if which == 0:
        base = k_ptr + b * stride_kb + g * stride_kg
        stride_n = stride_kn
    else:
        base = v_ptr + b * stride_vb + g * stride_vg
        stride_n = stride_vn
    std_ptr += ((row * num_scored + chunk).to(tl.int64) * 2 + which) * LAG
    chunk_std(base, stride_n, (sink + chunk * LAG).to(tl.int64), std_ptr, LAG, DIM, ROWS)


@triton.jit
def _highest(score, inside, KEPT: tl.constexpr):
    """True at the KEPT highest scores; ties go to the lower position."""
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
    return inside & (above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room)))


@triton.jit
def kept_tokens(std_k_ptr, std_v_ptr, v_weight, token, inside, KEPT: tl.constexpr):
    """True at the tokens of a chunk that stay (LagKV, eq. 7-8), given its standard deviations."""
    std_k = tl.load(std_k_ptr + token, mask=inside, other=float("-inf"))
    std_v = tl.load(std_v_ptr + token, mask=inside, other=float("-inf"))
    exp_k, exp_v = tl.exp(std_k - tl.max(std_k, axis=0)), tl.exp(std_v - tl.max(std_v, axis=0))
    score = exp_k / tl.sum(exp_k, axis=0) + v_weight * (exp_v / tl.sum(exp_v, axis=0))
    return _highest(score, inside, KEPT)


@triton.jit
def _keep_kernel(
    std_ptr, idx_ptr, inverse_ptr, v_weight, num_tokens, num_scored, sink, num_compact,
    LAG: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr, SINK_BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores of a chunk (eq. 7-8), its KEPT highest, and where each of its tokens went."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    start = sink + chunk * LAG
    std_k_ptr = std_ptr + (row * num_scored + chunk).to(tl.int64) * 2 * LAG
    std_v_ptr = std_k_ptr + LAG
    token = tl.arange(0, BLOCK)
    inside = token < LAG
    keep = kept_tokens(std_k_ptr, std_v_ptr, v_weight, token, inside, KEPT)
    idx_ptr += row.to(tl.int64) * num_compact
    inverse_ptr += row.to(tl.int64) * num_tokens
    compact = sink + chunk * KEPT + tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(idx_ptr + compact, (start + token).to(tl.int64), mask=keep)
    tl.store(inverse_ptr + start + token, tl.where(keep, compact, -1), mask=inside)
    if chunk == 0:
        first = tl.arange(0, SINK_BLOCK)
        tl.store(idx_ptr + first, first.to(tl.int64), mask=first < sink)
        tl.store(inverse_ptr + first, first, mask=first < sink)
    if chunk == num_scored - 1:
        for block in tl.static_range(2):  # fewer than two chunks follow the last scored one
            later = start + LAG + block * BLOCK + token
            tl.store(inverse_ptr + later, -1, mask=later < num_tokens)


@triton.jit
def _extend_kernel(
    k_ptr, v_ptr, idx_ptr, k_ext_ptr, v_ext_ptr,
    stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
    groups, num_ext, num_compact, num_duplicates, raw_offset, first_raw, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes [duplicates ; compact ; zeros ; raw]."""
    tile, row, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, g = (row // groups).to(tl.int64), row % groups
    if which == 0:
        base = k_ptr + b * stride_kb + g * stride_kg
        ext_ptr = k_ext_ptr
        stride_n = stride_kn
    else:
        base = v_ptr + b * stride_vb + g * stride_vg
        ext_ptr = v_ext_ptr
        stride_n = stride_vn
    j = tile * ROWS + tl.arange(0, ROWS)
    inside = (j < num_ext)[:, None]
    compact = tl.where(j < num_duplicates, j, j - num_duplicates)
    is_compact, is_raw = compact < num_compact, j >= raw_offset
    kept = tl.load(idx_ptr + row.to(tl.int64) * num_compact + compact, mask=is_compact, other=0)
    token = tl.where(is_compact, kept, (j - raw_offset + first_raw).to(tl.int64))
    channel = tl.arange(0, DIM)
    at = base + token[:, None] * stride_n + channel[None, :]
    z = tl.load(at, mask=inside & (is_compact | is_raw)[:, None], other=0.0)
    tl.store(ext_ptr + (row.to(tl.int64) * num_ext + j)[:, None] * DIM + channel[None, :], z, mask=inside)


@triton.jit
def _extend_backward_kernel(
    grad_k_ext_ptr, grad_v_ext_ptr, inverse_ptr, grad_k_ptr, grad_v_ptr,
    stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn, stride_ob, stride_og, stride_on,
    groups, num_tokens, num_duplicates, raw_offset, first_raw, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each token's gradient: the sum over its raw key, its compact key and the duplicate, as far as it has them."""
    tile, row, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, g = (row // groups).to(tl.int64), row % groups
    channel = tl.arange(0, DIM)[None, :]
    if which == 0:
        base = grad_k_ext_ptr + b * stride_kb + g * stride_kg + channel
        grad_ptr = grad_k_ptr
        stride_n = stride_kn
    else:
        base = grad_v_ext_ptr + b * stride_vb + g * stride_vg + channel
        grad_ptr = grad_v_ptr
        stride_n = stride_vn
    token = tile * ROWS + tl.arange(0, ROWS)
    inside = token < num_tokens
    compact = tl.load(inverse_ptr + row.to(tl.int64) * num_tokens + token, mask=inside, other=-1)
    raw_at = base + (raw_offset - first_raw + token).to(tl.int64)[:, None] * stride_n
    grad = tl.load(raw_at, mask=(inside & (token >= first_raw))[:, None], other=0.0).to(tl.float32)
    compact_at = base + (num_duplicates + compact).to(tl.int64)[:, None] * stride_n
    grad += tl.load(compact_at, mask=(compact >= 0)[:, None], other=0.0).to(tl.float32)
    duplicate_at = base + compact.to(tl.int64)[:, None] * stride_n
    grad += tl.load(duplicate_at, mask=((compact >= 0) & (compact < num_duplicates))[:, None], other=0.0).to(tl.float32)
    out = b * stride_ob + g * stride_og + token.to(tl.int64)[:, None] * stride_on + channel
    tl.store(grad_ptr + out, grad, mask=inside[:, None])


def select(k_BGND: Tensor, v_BGND: Tensor, rule: LagRule) -> tuple[Tensor, Tensor]:
    """`LagRule.select` with LagKV's scores in two launches; at least one chunk must be compressed, and some of it kept.

    Args:
        k_BGND: keys after RoPE, D a power of two.
        v_BGND: values.
        rule: with a `LagKVScorer`.

    Returns:
        int64 [B, G, C], the positions of the compact keys, and int32 [B, G, N], its inverse: the compact place of
        each token, -1 for those dropped.
    """
    # Under autocast the keys leave RoPE in float32 while the values are bf16: widening is exact.
    dtype = torch.promote_types(k_BGND.dtype, v_BGND.dtype)
    k, v = _rows(k_BGND.to(dtype)), _rows(v_BGND.to(dtype))
    batch, groups, num_tokens, dim = k.shape
    rows, num_scored = batch * groups, rule.compressed_chunks(num_tokens)
    sink, lag, num_compact = rule.sink_size, rule.lag_size, rule.compact_len(num_tokens)
    idx = torch.empty(batch, groups, num_compact, dtype=torch.int64, device=k.device)
    inverse = torch.empty(batch, groups, num_tokens, dtype=torch.int32, device=k.device)
    # The dtype is named because Lightning's bf16-true changes the default one.
    std = torch.empty(rows, num_scored, 2, lag, dtype=torch.float32, device=k.device)
    block = triton.next_power_of_2(lag)
    _std_kernel[(num_scored, rows, 2)](
        k, v, std, *k.stride()[:3], *v.stride()[:3], groups, num_scored, sink, lag, dim, min(block, 2**14 // dim),
        num_warps=16,
    )  # fmt: skip
    _keep_kernel[(num_scored, rows)](
        std, idx, inverse, rule.scorer.v_weight, num_tokens, num_scored, sink, num_compact,
        lag, block, rule.kept, max(16, triton.next_power_of_2(sink)), num_warps=4,
    )  # fmt: skip
    return idx, inverse


class Extend(torch.autograd.Function):
    """Keys and values in the order of a `KVLayout`, [B, G, E, D] each.

    Takes k and v [B, G, N, D] of one dtype, idx [B, G, C], inverse [B, G, N] and a layout of complete sequences.
    """

    @staticmethod
    def forward(
        ctx, k_BGND: Tensor, v_BGND: Tensor, idx_BGC: Tensor, inverse_BGN: Tensor, layout: KVLayout
    ) -> tuple[Tensor, Tensor]:
        k, v = _rows(k_BGND), _rows(v_BGND)
        batch, groups, _, dim = k.shape
        ctx.layout = layout
        ctx.save_for_backward(inverse_BGN)
        num_ext = layout.num_keys
        k_ext, v_ext = (z.new_empty(batch, groups, num_ext, dim) for z in (k, v))
        _extend_kernel[(triton.cdiv(num_ext, 64), batch * groups, 2)](
            k, v, idx_BGC, k_ext, v_ext, *k.stride()[:3], *v.stride()[:3],
            groups, num_ext, layout.num_compact, layout.num_duplicates, layout.raw_offset, layout.first_raw,
            dim, ROWS=64, num_warps=4,
        )  # fmt: skip
        return k_ext, v_ext

    @staticmethod
    def backward(ctx, grad_k_BGED: Tensor, grad_v_BGED: Tensor):
        (inverse,), layout = ctx.saved_tensors, ctx.layout
        k_ext, v_ext = _rows(grad_k_BGED), _rows(grad_v_BGED)
        batch, groups, num_tokens = inverse.shape
        dim = k_ext.shape[-1]
        # A token's heads side by side, as the backward of RoPE and of the projections wants them: else it would copy.
        grad_k, grad_v = (z.new_empty(batch, num_tokens, groups, dim).transpose(1, 2) for z in (k_ext, v_ext))
        _extend_backward_kernel[(triton.cdiv(num_tokens, 64), batch * groups, 2)](
            k_ext, v_ext, inverse, grad_k, grad_v, *k_ext.stride()[:3], *v_ext.stride()[:3], *grad_k.stride()[:3],
            groups, num_tokens, layout.num_duplicates, layout.raw_offset, layout.first_raw, dim, ROWS=64, num_warps=4,
        )  # fmt: skip
        return grad_k, grad_v, None, None, None


def _rows(z_BGND: Tensor) -> Tensor:
    """The tensor itself where its channels are contiguous, else a copy."""
    return z_BGND if z_BGND.stride(-1) == 1 else z_BGND.contiguous()
