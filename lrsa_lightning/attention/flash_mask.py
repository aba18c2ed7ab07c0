"""The mask of a `KVLayout` inside FlashAttention-4's kernels.

Needs flash-attn-4: import it only where its kernels run. A kernel is compiled for a mask function and what that has
captured. Here it captures the lag at most; all other sizes are arguments, so one kernel serves all rules.
"""

import inspect
import sys
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from cutlass import Int32, cute
from cutlass import max as larger
from cutlass import min as smaller
from flash_attn.cute.utils import scalar_to_ssa

from lrsa_lightning.attention.layout import KVLayout, visible_bounds


class _Sizes(NamedTuple):
    """What `visible_bounds` needs of a rule, as numbers of the kernel."""

    sink_size: Any
    lag_size: Any
    kept: Any


def mask_arguments(layout: KVLayout) -> tuple[Int32, ...]:
    """What `mask_mod` depends on: the kernel's arguments."""
    rule = layout.rule
    sizes = rule.sink_size, rule.lag_size, rule.kept, _log2(rule.lag_size) or 0
    return tuple(map(Int32, (layout.first_query, layout.num_duplicates, layout.diagonal, *sizes)))


def mask_mod(lag_size: int):
    """`KVLayout.visible` for the kernel: one for all lags that are powers of two, one for each other lag.

    A division by a number that the kernel does not know is slow; a shift is not.
    """
    return _mask_of(lag_size if _log2(lag_size) is None else None)


@cache
def _mask_of(known_lag: int | None):
    @cute.jit
    def visible(batch, head, query, key, seqlen_info, aux_tensors, scalars):
        first_query, num_duplicates, diagonal, sink_size, lag_size, kept, log2_lag = scalars
        sizes = _Sizes(sink_size, lag_size, kept)
        num_compact, raw_begin = _bounds(sizes, known_lag, log2_lag, query[0] + first_query)
        compact_end = num_compact + num_duplicates
        raw_begin = raw_begin + (diagonal - first_query)
        sees_raw = (key >= scalar_to_ssa(raw_begin, Int32)) & (key <= scalar_to_ssa(query[0] + diagonal, Int32))
        return (key < scalar_to_ssa(compact_end, Int32)) | sees_raw

    # flash-attn-4 keeps compiled kernels in files, by this name of their mask.
    sources = inspect.getsource(sys.modules[__name__]), inspect.getsource(visible_bounds)
    visible.__cute_hash__ = sha256(repr((known_lag, sources)).encode()).hexdigest()
    return visible


def _bounds(sizes: _Sizes, known_lag: int | None, log2_lag: Int32, position: Int32) -> tuple[Int32, Int32]:
    if known_lag is not None:
        return visible_bounds(sizes._replace(lag_size=known_lag), position, smaller, larger)
    return visible_bounds(sizes, position, smaller, larger, lambda distance, _: distance >> log2_lag)


def _log2(number: int) -> int | None:
    """The exponent of a power of two; None for other numbers."""
    return number.bit_length() - 1 if number.bit_count() == 1 else None
