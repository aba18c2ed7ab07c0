"""Triton kernels for one new token a row on a cache's storage: write it, attend, compress.

Each reads on the device how many tokens a row has seen, so it touches what the row holds and no more, and one CUDA
graph serves every step.

Shape suffixes: B batch, H query heads, G KV heads, T tokens of the storage, D head size.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrsa_lightning.attention.kernels import chunk_std, kept_tokens
from lrsa_lightning.attention.rule import LagRule

_BLOCK = 64
# Parts of a row's tokens that one combining program reads at most.
_MOST_SPLITS = 128


@triton.jit
def _compressed(num_tokens, sink, lag):
    """`LagRule.compressed_chunks`."""
    return tl.maximum((tl.maximum(num_tokens - sink, 0)) // lag - 1, 0)


@triton.jit
def _append_kernel(
    k_ptr, v_ptr, k_new_ptr, v_new_ptr, seen_ptr, stride_b, stride_g,
    stride_kb, stride_kg, stride_vb, stride_vg, groups, sink, lag, dropped, DIM: tl.constexpr,
):  # fmt: skip
    """Writes the new token of one row and head where the row's held tokens end."""
    row = tl.program_id(0)
    b, g = (row // groups).to(tl.int64), row % groups
    before = tl.load(seen_ptr + b) - 1
    place = before - _compressed(before, sink, lag) * dropped
    channel = tl.arange(0, DIM)
    at = b * stride_b + g * stride_g + place * DIM + channel
    k, v = (
        tl.load(k_new_ptr + b * stride_kb + g * stride_kg + channel),
        tl.load(v_new_ptr + b * stride_vb + g * stride_vg + channel),
    )
    tl.store(k_ptr + at, k.to(k_ptr.dtype.element_ty))
    tl.store(v_ptr + at, v.to(v_ptr.dtype.element_ty))


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, seen_ptr, out_ptr, lse_ptr, scale, stride_qb, stride_qh, stride_b, stride_g,
    groups, sink, lag, dropped, splits,
    SHARED: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of the query heads of one KV head over one part of the row's tokens, not yet normalised over parts."""
    row, split = tl.program_id(0), tl.program_id(1)
    b, g = (row // groups).to(tl.int64), row % groups
    before = tl.load(seen_ptr + b) - 1
    held = (before - _compressed(before, sink, lag) * dropped + 1).to(tl.int32)
    part = tl.cdiv(tl.cdiv(held, splits), BLOCK) * BLOCK
    start, end = split * part, tl.minimum(split * part + part, held)
    head, channel = tl.arange(0, HEADS), tl.arange(0, DIM)
    q_at = q_ptr + b * stride_qb + (g * SHARED + head)[:, None].to(tl.int64) * stride_qh + channel[None, :]
    q = tl.load(q_at, mask=(head < SHARED)[:, None], other=0.0)
    base = b * stride_b + g.to(tl.int64) * stride_g
    most = tl.full([HEADS], float("-inf"), tl.float32)
    total, acc = tl.zeros([HEADS], tl.float32), tl.zeros([HEADS, DIM], tl.float32)
    for first in range(start, end, BLOCK):
        token = first + tl.arange(0, BLOCK)
        inside = token < end
        at = base + token[:, None].to(tl.int64) * DIM + channel[None, :]
        k = tl.load(k_ptr + at, mask=inside[:, None], other=0.0)
        v = tl.load(v_ptr + at, mask=inside[:, None], other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits = tl.where(inside[None, :], logits, float("-inf"))
        new_most = tl.maximum(most, tl.max(logits, axis=1))
        weight, fade = tl.exp2(logits - new_most[:, None]), tl.exp2(most - new_most)
        total = total * fade + tl.sum(weight, axis=1)
        acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        most = new_most
    place = ((b * groups + g) * SHARED + head) * splits + split
    is_head = head < SHARED
    # A part without tokens weighs nothing; its sum must not divide by 0.
    lse = tl.where(total > 0, most + tl.log2(tl.maximum(total, 1e-38)), float("-inf"))
    tl.store(lse_ptr + place, lse, mask=is_head)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + place[:, None] * DIM + channel[None, :], acc, mask=is_head[:, None])


@triton.jit
def _combine_kernel(part_ptr, lse_ptr, out_ptr, splits, SPLITS: tl.constexpr, DIM: tl.constexpr):
    """Joins the parts of one query head."""
    head = tl.program_id(0).to(tl.int64)
    split, channel = tl.arange(0, SPLITS), tl.arange(0, DIM)
    lse = tl.load(lse_ptr + head * splits + split, mask=split < splits, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, axis=0))
    at = part_ptr + (head * splits + split)[:, None] * DIM + channel[None, :]
    part = tl.load(at, mask=(split < splits)[:, None], other=0.0)
    out = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + head * DIM + channel, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _score_kernel(
    k_ptr, v_ptr, seen_ptr, std_ptr, stride_b, stride_g, groups, sink, lag, dropped, kept,
    LAG: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Standard deviations of the chunk that the new token of a row compresses, if it does."""
    row, which = tl.program_id(0), tl.program_id(1)
    b, g = (row // groups).to(tl.int64), row % groups
    seen = tl.load(seen_ptr + b)
    compressed = _compressed(seen - 1, sink, lag)
    if _compressed(seen, sink, lag) > compressed:
        base = (k_ptr if which == 0 else v_ptr) + b * stride_b + g * stride_g
        std_ptr += (row.to(tl.int64) * 2 + which) * LAG
        chunk_std(base, DIM, sink + compressed * kept, std_ptr, LAG, DIM, ROWS)


@triton.jit
def _move_kernel(
    k_ptr, v_ptr, seen_ptr, std_ptr, place_ptr, v_weight, stride_b, stride_g, groups, sink, lag, dropped, kept,
    LAG: tl.constexpr, TOKENS: tl.constexpr, KEPT: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Moves the kept tokens of that chunk, then the next chunk, to the front of the chunk's place.

    No token moves backward, so what a round overwrites has been read by it or by rounds before.
    """
    row, which = tl.program_id(0), tl.program_id(1)
    b, g = (row // groups).to(tl.int64), row % groups
    seen = tl.load(seen_ptr + b)
    compressed = _compressed(seen - 1, sink, lag)
    if _compressed(seen, sink, lag) > compressed:
        start, channel = sink + compressed * kept, tl.arange(0, DIM)
        base = (k_ptr if which == 0 else v_ptr) + b * stride_b + g * stride_g + start * DIM
        if KEPT > 0:
            token = tl.arange(0, TOKENS)
            std_ptr += row.to(tl.int64) * 2 * LAG
            keep = kept_tokens(std_ptr, std_ptr + LAG, v_weight, token, token < LAG, KEPT)
            place_ptr += (row.to(tl.int64) * 2 + which) * LAG
            place = tl.where(keep, tl.cumsum(keep.to(tl.int32), axis=0) - 1, -1)
            tl.store(place_ptr + token, place, mask=token < LAG)
            tl.debug_barrier()
            for offset in range(0, LAG, ROWS):
                at = offset + tl.arange(0, ROWS)
                moves_to = tl.load(place_ptr + at, mask=at < LAG, other=-1)
                moves = (moves_to >= 0)[:, None]
                z = tl.load(base + at[:, None] * DIM + channel[None, :], mask=moves, other=0.0)
                tl.debug_barrier()
                tl.store(base + moves_to[:, None] * DIM + channel[None, :], z, mask=moves)
                tl.debug_barrier()
        for offset in range(0, LAG, ROWS):
            at = offset + tl.arange(0, ROWS)
            inside = (at < LAG)[:, None]
            z = tl.load(base + (LAG + at)[:, None] * DIM + channel[None, :], mask=inside, other=0.0)
            tl.debug_barrier()
            tl.store(base + (KEPT + at)[:, None] * DIM + channel[None, :], z, mask=inside)
            tl.debug_barrier()


def append(
    keys_BGTD: Tensor, values_BGTD: Tensor, k_BG1D: Tensor, v_BG1D: Tensor, seen_B: Tensor, rule: LagRule
) -> None:
    """Writes one token a row to the storage.

    Args:
        keys_BGTD: storage of the keys, contiguous; D a power of two.
        values_BGTD: of the values, likewise.
        k_BG1D: new keys after RoPE.
        v_BG1D: their values.
        seen_B: int64, tokens that each row has seen, the new one included.
        rule: the sizes of the rule.
    """
    k_BG1D, v_BG1D = (z if z.stride(-1) == 1 else z.contiguous() for z in (k_BG1D, v_BG1D))
    batch, groups, _, dim = keys_BGTD.shape
    _append_kernel[(batch * groups,)](
        keys_BGTD, values_BGTD, k_BG1D, v_BG1D, seen_B, *keys_BGTD.stride()[:2], *k_BG1D.stride()[:2],
        *v_BG1D.stride()[:2], groups, *_sizes(rule), dim, num_warps=1,
    )  # fmt: skip


def attend(
    q_BH1D: Tensor, keys_BGTD: Tensor, values_BGTD: Tensor, seen_B: Tensor, rule: LagRule, scale: float | None
) -> Tensor:
    """Attention of one new token a row over all that its row holds, [B, H, 1, D].

    A row's tokens are divided among programs, so that a single row keeps all multiprocessors busy.

    Args:
        q_BH1D: its queries after RoPE, in the dtype of the storage.
        keys_BGTD: storage of the keys, the new one included.
        values_BGTD: of the values.
        seen_B: int64, tokens that each row has seen, the new one included.
        rule: the sizes of the rule.
        scale: of the logits; 1 / sqrt(D) when None.
    """
    q_BH1D = q_BH1D if q_BH1D.stride(-1) == 1 else q_BH1D.contiguous()
    batch, heads, _, dim = q_BH1D.shape
    groups, capacity = keys_BGTD.shape[1:3]
    splits = min(_MOST_SPLITS, -(-capacity // _BLOCK), max(1, 2 * _processors(q_BH1D.device) // (batch * groups)))
    parts = torch.empty(batch * heads, splits, dim, dtype=torch.float32, device=q_BH1D.device)
    lse = torch.empty(batch * heads, splits, dtype=torch.float32, device=q_BH1D.device)
    shared = heads // groups
    scale = (dim**-0.5 if scale is None else scale) * 1.4426950408889634  # powers of two are cheaper than of e
    _attend_kernel[(batch * groups, splits)](
        q_BH1D, keys_BGTD, values_BGTD, seen_B, parts, lse, scale, *q_BH1D.stride()[:2], *keys_BGTD.stride()[:2],
        groups, *_sizes(rule), splits, shared, max(16, triton.next_power_of_2(shared)), _BLOCK, dim,
        "ieee" if q_BH1D.dtype == torch.float32 else "tf32", num_warps=4, num_stages=3,
    )  # fmt: skip
    out = torch.empty(batch, heads, 1, dim, dtype=q_BH1D.dtype, device=q_BH1D.device)
    _combine_kernel[(batch * heads,)](
        parts, lse, out, splits, triton.next_power_of_2(splits), dim, num_warps=4
    )  # fmt: skip
    return out


def compress(keys_BGTD: Tensor, values_BGTD: Tensor, seen_B: Tensor, rule: LagRule) -> None:
    """Compresses the chunk of each row whose newest token completes the next chunk; other rows cost two empty launches.

    Args:
        keys_BGTD: storage of the keys.
        values_BGTD: of the values.
        seen_B: int64, tokens that each row has seen.
        rule: with a `LagKVScorer`, or one that keeps nothing.
    """
    batch, groups, _, dim = keys_BGTD.shape
    rows, lag = batch * groups, rule.lag_size
    std = torch.empty(rows, 2, lag, dtype=torch.float32, device=keys_BGTD.device)
    places = torch.empty(rows, 2, lag, dtype=torch.int32, device=keys_BGTD.device)
    block = triton.next_power_of_2(lag)
    storage = keys_BGTD, values_BGTD, seen_B, std
    sizes = *keys_BGTD.stride()[:2], groups, *_sizes(rule), rule.kept
    if rule.kept:
        _score_kernel[(rows, 2)](*storage, *sizes, lag, dim, min(block, 2**14 // dim), num_warps=16)
    _move_kernel[(rows, 2)](
        *storage, places, rule.scorer.v_weight if rule.kept else 0.0, *sizes, lag, block, rule.kept, dim,
        min(block, 2**13 // dim), num_warps=8,
    )  # fmt: skip


def _sizes(rule: LagRule) -> tuple[int, int, int]:
    """What the arithmetic of chunks needs: S, L, and the tokens that a compressed chunk loses."""
    return rule.sink_size, rule.lag_size, rule.lag_size - rule.kept


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # under Triton's interpreter
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
