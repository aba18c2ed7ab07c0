"""How the tokens of a chunk are ranked: LagKV, and the controls an ablation needs at the same budget.

A scorer sees T + 1 consecutive chunks and ranks the first T: the highest scores are kept. It must be a function of
those chunks, the layer and the position alone, so that training, prefill and decoding keep the same tokens.

Shape suffixes: B batch, G KV heads, N = (T + 1) * L tokens, D head size, T chunks scored, L lag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lrsa_lightning.attention import lagkv

ScorerName: TypeAlias = Literal["lagkv", "random", "key_norm", "window"]


@dataclass(frozen=True)
class Place:
    """Where in the model and the sequence the chunks lie.

    Attributes:
        layer_idx: decoder layer.
        start: position of the first token.
        first_head: of the KV heads at hand; not 0 where ranks share them.
    """

    layer_idx: int
    start: int
    first_head: int = 0


def score_lagkv(k_BGND: Tensor, v_BGND: Tensor, mode, place: Place) -> Tensor:
    """LagKV: see `lagkv.score_chunks`."""
    return lagkv.score_chunks(k_BGND, v_BGND, mode.lag_size, mode.v_weight)


def score_random(k_BGND: Tensor, v_BGND: Tensor, mode, place: Place) -> Tensor:
    """A hash of (seed, layer, KV head, position): the same in every execution and every row."""
    batch, groups, num_tokens, _ = k_BGND.shape
    position = torch.arange(place.start, place.start + num_tokens - mode.lag_size, device=k_BGND.device)
    head_G1 = place.first_head + torch.arange(groups, device=k_BGND.device).unsqueeze(-1)
    seed, layer = torch.tensor([mode.seed, place.layer_idx], device=k_BGND.device)
    mixed = _mix(_mix(_mix(_mix(seed) + layer) + head_G1) + position)
    scores_GTL = (mixed >> 8).float().unflatten(-1, (-1, mode.lag_size))
    return scores_GTL.expand(batch, -1, -1, -1)


def score_key_norm(k_BGND: Tensor, v_BGND: Tensor, mode, place: Place) -> Tensor:
    """Keys of low norm first (Devoto et al., arXiv 2406.11430)."""
    return -k_BGND[:, :, : -mode.lag_size].float().norm(dim=-1).unflatten(-1, (-1, mode.lag_size))


SCORERS: dict[str, Callable[[Tensor, Tensor, object, Place], Tensor]] = {
    "lagkv": score_lagkv,
    "random": score_random,
    "key_norm": score_key_norm,
    # Sink and last chunk only: nothing is kept, so any ranking will do.
    "window": score_key_norm,
}


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (two rounds of xor-shift-multiply) in int64 without overflow."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
