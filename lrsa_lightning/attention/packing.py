"""Rows that hold several samples: each attends within itself, as if it were run alone.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Boundaries of each row's samples, from 0 to N.
CuSeqlens = Sequence[Sequence[int]]


def sample_by_sample(execution: Callable) -> Callable:
    """Gives an execution of a mask the argument ``cu_seqlens``.

    Each sample has its own sink, chunks and causality. So under every execution a packed row equals its samples run
    apart.
    """

    @wraps(execution)
    def attention(
        q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, mode_or_rule: Any, scale: float | None = None, *,
        cu_seqlens: CuSeqlens | Tensor | None = None, **options,
    ) -> Tensor:  # fmt: skip
        if cu_seqlens is None:
            return execution(q_BHND, k_BGND, v_BGND, mode_or_rule, scale, **options)
        rows = []
        for row, boundaries in enumerate(boundaries_of(cu_seqlens, q_BHND.shape[0], q_BHND.shape[2])):
            q, k, v = (z[row : row + 1] for z in (q_BHND, k_BGND, v_BGND))
            samples = [
                execution(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], mode_or_rule, scale, **options)
                for start, end in pairwise(boundaries)
            ]
            rows.append(torch.cat(samples, dim=2))
        return torch.cat(rows)

    return attention


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
