"""LRSA as a dense boolean mask: the executable specification. Tests only, its memory grows with N squared.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, C compact keys.
"""

import torch
from torch import Tensor

from lrsa_lightning.attention.packing import sample_by_sample


def lrsa_mask(idx_BGC: Tensor, num_tokens: int, sink_size: int, lag_size: int) -> Tensor:
    """Who sees whom under the rule.

    Args:
        idx_BGC: positions that stay visible for good, as `lagkv.select` returns them.
        num_tokens: N.
        sink_size: S.
        lag_size: L.

    Returns:
        bool [B, G, N, N], True where query (third axis) sees key (last axis).
    """
    position = torch.arange(num_tokens, device=idx_BGC.device)
    chunk = (position - sink_size).div(lag_size, rounding_mode="floor")
    kept_BGN = torch.zeros((*idx_BGC.shape[:2], num_tokens), dtype=torch.bool, device=idx_BGC.device)
    kept_BGN.scatter_(2, idx_BGC, True)  # the sink is among them
    causal = position[None, :] <= position[:, None]
    recent = chunk[None, :] >= chunk[:, None] - 1
    return causal & (recent | kept_BGN[:, :, None, :])


@sample_by_sample
def lrsa_attention(
    q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, mode, scale: float | None = None, *, layer_idx: int | None = None
) -> Tensor:
    """Masked training forward of `mode`, computed densely.

    Softmax in float32, in float64 for float64 input; differentiable. Arguments and result as in
    `fill.lrsa_attention`.
    """
    chunking = mode.chunking(layer_idx)
    groups, num_tokens = k_BGND.shape[1:3]
    scale = q_BHND.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(q_BHND.dtype, torch.float32)
    idx_BGC = mode.select(k_BGND, v_BGND, layer_idx)
    mask_BGNN = lrsa_mask(idx_BGC, num_tokens, chunking.sink_size, chunking.lag_size)

    q_BGRND = q_BHND.unflatten(1, (groups, -1)).to(dtype)
    logits = q_BGRND @ k_BGND.to(dtype).unsqueeze(2).transpose(-1, -2) * scale
    weights = logits.masked_fill(~mask_BGNN.unsqueeze(2), float("-inf")).softmax(dim=-1)
    return (weights @ v_BGND.to(dtype).unsqueeze(2)).flatten(1, 2).to(q_BHND.dtype)
