"""How a scorer ranks the tokens of a chunk: LagKV, and the controls that an ablation needs at the same budget.

A scorer takes T + 1 consecutive chunks and scores the first T; the rule keeps the highest scores. The scores depend on
those chunks, the layer and the position alone. So training, prefill and decoding keep the same tokens.

Shape suffixes: B batch, G KV heads, N = (T + 1) * L tokens, D head size, T scored chunks, L lag.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

ScorerName: TypeAlias = Literal["lagkv", "random", "key_norm", "window"]

# Far above any normalised key that means something, far below where its square over the channels overflows.
_NORMALISED_BOUND = 1e15


@dataclass(frozen=True)
class ChunkLocation:
    """Where in the model and the sequence the chunks are.

    Attributes:
        layer_idx: the decoder layer.
        start: position of the first token.
        first_kv_head: the first of the KV heads given; not 0 on a rank that has a share of the heads.
    """

    layer_idx: int
    start: int
    first_kv_head: int = 0


class Scorer(Protocol):
    """Ranks tokens. Its instances are frozen: equal ones rank alike."""

    def score(self, k_BGND: Tensor, v_BGND: Tensor, lag_size: int, location: ChunkLocation) -> Tensor:
        """Scores of the first T of T + 1 consecutive chunks.

        Args:
            k_BGND: keys after RoPE, N = (T + 1) * L.
            v_BGND: their values.
            lag_size: L.
            location: of the chunks.

        Returns:
            float32 [B, G, T, L].
        """


@dataclass(frozen=True)
class LagKVScorer:
    """LagKV (arXiv 2504.04704, equations 4 to 8).

    Attributes:
        v_weight: weight of the values' score; the keys' score weighs 1.
    """

    v_weight: float = 1.0

    def score(self, k_BGND: Tensor, v_BGND: Tensor, lag_size: int, location: ChunkLocation) -> Tensor:
        """See `Scorer.score`. Each row of scores sums to 1 + v_weight.

        It computes in float32 whatever the dtype of the keys, also under autocast. In bf16, eager and compiled code
        choose different tokens.
        """
        with torch.autocast(k_BGND.device.type, enabled=False):
            k_BGTLD, v_BGTLD = (z.float().unflatten(2, (-1, lag_size)) for z in (k_BGND, v_BGND))
            k_score = _lag_relative_std(k_BGTLD[:, :, :-1], k_BGTLD[:, :, 1:])
            v_score = _lag_relative_std(v_BGTLD[:, :, :-1], v_BGTLD[:, :, 1:])
            return k_score + self.v_weight * v_score


@dataclass(frozen=True)
class RandomScorer:
    """A hash of (seed, layer, KV head, position): the same in every execution and every row."""

    seed: int = 0

    def score(self, k_BGND: Tensor, v_BGND: Tensor, lag_size: int, location: ChunkLocation) -> Tensor:
        """See `Scorer.score`."""
        batch, groups, num_tokens, _ = k_BGND.shape
        position = torch.arange(location.start, location.start + num_tokens - lag_size, device=k_BGND.device)
        head_G1 = location.first_kv_head + torch.arange(groups, device=k_BGND.device).unsqueeze(-1)
        # Seed and layer are mixed on the host: their copy to a device would wait for it.
        mixed = _mix(_mix(_mix(_mix(self.seed) + location.layer_idx) + head_G1) + position)
        scores_GTL = (mixed >> 8).float().unflatten(-1, (-1, lag_size))
        return scores_GTL.expand(batch, -1, -1, -1)


@dataclass(frozen=True)
class KeyNormScorer:
    """Keys of low norm first (Devoto et al., arXiv 2406.11430)."""

    def score(self, k_BGND: Tensor, v_BGND: Tensor, lag_size: int, location: ChunkLocation) -> Tensor:
        """See `Scorer.score`."""
        return -k_BGND[:, :, :-lag_size].float().norm(dim=-1).unflatten(-1, (-1, lag_size))


def make_scorer(name: ScorerName, v_weight: float = 1.0, seed: int = 0) -> Scorer:
    """The scorer with this name in YAML. ``window`` keeps no token of a chunk, so its ranking does not matter."""
    scorers = {"lagkv": LagKVScorer(v_weight), "random": RandomScorer(seed)}
    return scorers.get(name, KeyNormScorer())


def _lag_relative_std(z_BGTLD: Tensor, next_BGTLD: Tensor) -> Tensor:
    """Softmax over a chunk's tokens of the channel std, normalised by the next chunk's range (eq. 4-7)."""
    # Halved before the subtractions: exact in binary, and no difference of finite float32 overflows.
    low = next_BGTLD.amin(dim=-2, keepdim=True) / 2
    span = next_BGTLD.amax(dim=-2, keepdim=True) / 2 - low
    normalised = ((z_BGTLD / 2 - low) / span).clamp(-_NORMALISED_BOUND, _NORMALISED_BOUND)
    # A channel without range says nothing about its tokens; it still counts among the D.
    return normalised.masked_fill(span == 0, 0.0).std(dim=-1).softmax(dim=-1)


def _mix(x: Tensor | int) -> Tensor | int:
    """A 32-bit integer hash (two rounds of xor-shift-multiply), in int64 without overflow; ints give equal bits."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
