"""What transformers' masks say about rows: where packed samples begin, and what is no causal mask at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.packing import boundaries_from_starts
from lrsa_lightning.errors import InputError


@dataclass(frozen=True)
class Rows:
    """Handed to each attention layer instead of a mask.

    Attributes:
        boundaries: of the samples in each packed row; None where no row is known to hold more than one.
        is_causal: False where tokens do not see all of their sample up to themselves, and nothing else.
        examined: transformers looked for packed rows, unless a cache is in use.
    """

    boundaries: list[list[int]] | None = None
    is_causal: bool = True
    examined: bool = False


def find_rows(
    *_, mask_function: Callable, kv_length: int, batch_size: int, attention_mask: Tensor | None = None,
    q_length: int | None = None, q_offset: int = 0, cache_position: Tensor | None = None,
    device: torch.device | None = None, use_vmap: bool = False, **__,
) -> Rows:  # fmt: skip
    """Mask registration: the rule needs no mask, only, of packed rows, where their samples begin.

    transformers finds packed rows by positions that begin anew, and says so in ``mask_function``, as it says all else
    that deviates from a causal mask. Right padding is exact by construction. Older versions of transformers give the
    queries' positions as ``cache_position``.

    Raises:
        InputError: a row is padded on the left, or in its middle.
    """
    from transformers.masking_utils import causal_mask_function

    if attention_mask is not None and torch.any(attention_mask[:, 1:] & ~attention_mask[:, :-1]):
        raise InputError(
            "LRSA cannot be exact on left-padded rows: padding would fill the sink and shift the chunks. "
            "Pad on the right and use lrsa_lightning.generate, or run the prompts one by one."
        )
    if mask_function is causal_mask_function:
        return Rows(examined=attention_mask is None)
    if use_vmap:
        return Rows(is_causal=False)  # a function of the model's or the user's own
    if cache_position is not None:
        q_offset, q_length, device = int(cache_position[0]), len(cache_position), cache_position.device
    first = max(1, int(q_offset))
    token = torch.arange(first, q_offset + (kv_length if q_length is None else q_length), device=device)
    row = torch.arange(batch_size, device=device)[:, None]
    begins_BN = ~mask_function(row, 0, token, token - 1).expand(batch_size, -1)
    sample_BN = torch.where(begins_BN, token, 0).cummax(dim=1).values
    is_causal = mask_function(row, 0, token, sample_BN) & ~mask_function(row, 0, token - 1, token)
    if not bool(is_causal.all()):
        return Rows(is_causal=False)
    return Rows(boundaries_from_starts(begins_BN), examined=True)


def boundaries_told(rows: Any, module, position_ids: Tensor | None, use_cache: bool | None, num_queries: int):
    """Boundaries of the samples in each row, or None: what an attention layer makes of what it got as mask.

    Args:
        rows: what `find_rows` found; None where the layer is called without a model around it.
        module: the attention layer.
        position_ids: int64 [B or 1, n] of its queries, if the model hands them on.
        use_cache: as the model was called.
        num_queries: n.

    Raises:
        InputError: the mask is another than causal, or positions begin anew where nobody looked for packed rows.
    """
    if rows is not None and not isinstance(rows, Rows):
        raise InputError(
            f"LRSA makes its own mask, but layer {module.layer_idx} was given one ({type(rows).__name__}): "
            "pass attention_mask as [B, N] of zeros and ones, padded on the right, or None"
        )
    if rows is not None and not rows.is_causal:
        raise InputError(
            f"LRSA replaces full causal attention, but layer {module.layer_idx} is masked otherwise: "
            "by a sliding window or chunks within reach, or so that tokens see those behind them"
        )
    if rows is not None and (rows.boundaries or (rows.examined and use_cache is False)):
        return rows.boundaries
    if module.layer_idx == 0 and num_queries > 1:
        _check_positions(position_ids, num_queries)
    return None


def _check_positions(position_ids: Tensor | None, num_queries: int) -> None:
    """Refuses positions of packed rows where nothing told their boundaries; those of another length are not theirs."""
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != num_queries:
        return
    if bool((position_ids.diff(dim=1) != 1).any()):
        raise InputError(
            "LRSA: position_ids do not rise by one. Packed rows keep their boundaries only without attention_mask and "
            "with use_cache=False; rows padded on the right need no position_ids of their own"
        )
