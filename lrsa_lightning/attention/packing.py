"""Rows that hold several samples: each attends within itself, as if it were run alone.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# Boundaries of each row's samples, from 0 to N.
CuSeqlens = Sequence[Sequence[int]]


def sample_by_sample(execution: Callable, padded_length: Callable[..., int] | None = None) -> Callable:
    """Gives an execution of a mask the argument ``cu_seqlens``.

    Each sample has its own sink, chunks and causality. So under every execution a packed row equals its samples run
    apart.

    Args:
        execution: of rows of one sample each.
        padded_length: tokens to pad a sample to, given its queries and the execution's options; padding on the right is
            exact. None pads none.
    """

    @wraps(execution)
    def attention(
        q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, mode_or_rule: Any, scale: float | None = None, *,
        cu_seqlens: CuSeqlens | Tensor | None = None, **options,
    ) -> Tensor:  # fmt: skip
        if cu_seqlens is None:
            return execution(q_BHND, k_BGND, v_BGND, mode_or_rule, scale, **options)
        rows = boundaries_of(cu_seqlens, q_BHND.shape[0], q_BHND.shape[2])
        if all(len(row) == 2 for row in rows):  # one sample a row
            return execution(q_BHND, k_BGND, v_BGND, mode_or_rule, scale, **options)
        lengths = [end - start for row in rows for start, end in pairwise(row)]
        samples = zip(*(_split(z, lengths) for z in (q_BHND, k_BGND, v_BGND)), strict=True)
        return _join([of_sample(*sample, mode_or_rule, scale, **options) for sample in samples], len(rows))

    def of_sample(q_BHND: Tensor, *others: Any, **options) -> Tensor:
        num_tokens = q_BHND.shape[2]
        padding = 0 if padded_length is None else padded_length(q_BHND, **options) - num_tokens
        if not padding:
            return execution(q_BHND, *others, **options)
        k_BGND, v_BGND, *arguments = others
        padded = (pad(z, (0, 0, 0, padding)) for z in (q_BHND, k_BGND, v_BGND))
        return execution(*padded, *arguments, **options)[:, :, :num_tokens]

    return attention


def _split(z_BXND: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The samples of all rows, [1, X, n, D] each: views where a token's heads lie side by side, as after a projection.

    One split, not a slice for each sample: the backward of a slice writes zeros for the complete row.
    """
    tokens = z_BXND.transpose(1, 2).flatten(0, 1)
    return [z_nXD.transpose(0, 1).unsqueeze(0) for z_nXD in tokens.split(lengths)]


def _join(samples: Sequence[Tensor], batch: int) -> Tensor:
    """The rows again, [B, H, N, D], in one copy: what follows the attention wants a token's heads side by side."""
    tokens = torch.cat([z_1HnD.transpose(1, 2) for z_1HnD in samples], dim=1)
    return tokens.unflatten(1, (batch, -1)).squeeze(0).transpose(1, 2)


def boundaries_of(cu_seqlens: CuSeqlens | Tensor, batch: int, num_tokens: int) -> list[list[int]]:
    """Checked boundaries of each row; a single list or 1-D tensor is that of a single row.

    Raises:
        ValueError: not one list for each row, or one that does not rise from 0 to N.
    """
    given = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else [*cu_seqlens]
    rows = [given] if given and isinstance(given[0], int) else [[int(at) for at in row] for row in given]
    good = all(row[0] == 0 and row[-1] == num_tokens and all(a < b for a, b in pairwise(row)) for row in rows)
    if len(rows) != batch or not good:
        raise ValueError(f"cu_seqlens must rise from 0 to {num_tokens} in each of {batch} rows, got {rows}")
    return rows


def boundaries_from_starts(begins_BN: Tensor) -> list[list[int]] | None:
    """Boundaries, given whether each token but the first begins a sample; None where no row holds more than one."""
    if not bool(begins_BN.any()):
        return None
    return [[0, *(row.nonzero().flatten() + 1).tolist(), begins_BN.shape[1] + 1] for row in begins_BN]
