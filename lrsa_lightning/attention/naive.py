"""LRSA as a dense boolean mask: the executable specification. Tests only, its memory grows with N squared.

It shares no arithmetic with the rule and the layout: chunks, LagKV's scores, kept tokens and visibility are its own.
Only the scorers of the controls are the rule's, since nothing else defines them.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size, L lag.
"""

from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.packing import sample_by_sample
from lrsa_lightning.attention.rule import LagRule, rule_of
from lrsa_lightning.attention.scorers import ChunkLocation, LagKVScorer


@sample_by_sample
def lrsa_attention(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    mode_or_rule: Any,
    scale: float | None = None,
    *,
    layer_idx: int | None = None,
) -> Tensor:
    """Masked training forward, computed densely.

    Softmax in float32, in float64 for float64 input; differentiable. Arguments and result as in
    `fill.lrsa_attention`.
    """
    rule = rule_of(mode_or_rule, layer_idx)
    scale = q_BHND.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(q_BHND.dtype, torch.float32)
    mask_BGNN = lrsa_mask(k_BGND.detach(), v_BGND.detach(), rule, layer_idx or 0)

    q_BGRND = q_BHND.unflatten(1, (k_BGND.shape[1], -1)).to(dtype)
    logits = q_BGRND @ k_BGND.to(dtype).unsqueeze(2).transpose(-1, -2) * scale
    weights = logits.masked_fill(~mask_BGNN.unsqueeze(2), float("-inf")).softmax(dim=-1)
    return (weights @ v_BGND.to(dtype).unsqueeze(2)).flatten(1, 2).to(q_BHND.dtype)


def lrsa_mask(k_BGND: Tensor, v_BGND: Tensor, rule: LagRule, layer_idx: int = 0) -> Tensor:
    """Who sees whom under the rule: bool [B, G, N, N], True where query (third axis) sees key (last axis)."""
    kept_BGN = kept_tokens(k_BGND, v_BGND, rule, layer_idx)
    position = torch.arange(k_BGND.shape[2], device=k_BGND.device)
    chunk = (position - rule.sink_size).div(rule.lag_size, rounding_mode="floor")  # negative in the sink
    causal = position[None, :] <= position[:, None]
    recent = chunk[None, :] >= chunk[:, None] - 1
    return causal & (recent | kept_BGN[:, :, None, :])


def kept_tokens(k_BGND: Tensor, v_BGND: Tensor, rule: LagRule, layer_idx: int = 0) -> Tensor:
    """Which tokens stay visible for good: bool [B, G, N]. The sink does, and the best of each chunk before the last."""
    batch, groups, num_tokens, _ = k_BGND.shape
    kept_BGN = torch.zeros((batch, groups, num_tokens), dtype=torch.bool, device=k_BGND.device)
    kept_BGN[:, :, : rule.sink_size] = True
    start = rule.sink_size
    while start + 2 * rule.lag_size <= num_tokens:
        two_chunks = slice(start, start + 2 * rule.lag_size)
        scores_BGL = _chunk_scores(k_BGND[:, :, two_chunks], v_BGND[:, :, two_chunks], rule, layer_idx, start)
        best_BGM = scores_BGL.argsort(dim=-1, descending=True, stable=True)[..., : rule.kept]
        kept_BGN.scatter_(2, best_BGM + start, True)
        start += rule.lag_size
    return kept_BGN


def _chunk_scores(k_BGND: Tensor, v_BGND: Tensor, rule: LagRule, layer_idx: int, start: int) -> Tensor:
    """Scores of the first of two chunks, float32 [B, G, L]."""
    if not isinstance(rule.scorer, LagKVScorer):
        location = ChunkLocation(layer_idx, start, rule.first_kv_head)
        return rule.scorer.score(k_BGND, v_BGND, rule.lag_size, location).squeeze(2)
    of_keys, of_values = (_lagkv_score(z_BGND.float(), rule.lag_size) for z_BGND in (k_BGND, v_BGND))
    return of_keys + rule.scorer.v_weight * of_values


def _lagkv_score(z_BGND: Tensor, lag_size: int) -> Tensor:
    """Equations 4 to 7 of LagKV: a chunk by the range of the next one, its std over channels, softmax over tokens."""
    z_BGLD, next_BGLD = z_BGND.split(lag_size, dim=2)
    low_BG1D, high_BG1D = next_BGLD.amin(dim=2, keepdim=True) / 2, next_BGLD.amax(dim=2, keepdim=True) / 2
    normalised = (z_BGLD / 2 - low_BG1D) / (high_BG1D - low_BG1D)  # halved: the difference of finite numbers is finite
    normalised = torch.where(high_BG1D == low_BG1D, 0.0, normalised.clamp(-1e15, 1e15))
    return normalised.std(dim=-1, correction=1).softmax(dim=-1)
