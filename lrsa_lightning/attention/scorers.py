"""How a scorer ranks the tokens of a chunk: LagKV, and the controls that an ablation needs at the same budget.

A scorer takes T + 1 consecutive chunks and scores the first T; the rule keeps the highest scores. The scores depend on
those chunks, the layer and the position alone. So training, prefill and decoding keep the same tokens.

Shape suffixes: B batch, G KV heads, N = (T + 1) * L tokens, D head size, T scored chunks, L lag.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

ScorerName: TypeAlias = Literal["lagkv", "random", "key_norm", "window"]

# Far above any normalised key that means something, far below where its square over the channels overflows.
_NORMALISED_BOUND = 1e15
# Elements of a tensor from which on torch's operators run on several threads on CPU.
_PIECE = 2**15


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
            k_std_BGTL, v_std_BGTL = (_lag_relative_std(z_BGND, lag_size) for z_BGND in (k_BGND, v_BGND))
            return _softmax(k_std_BGTL) + self.v_weight * _softmax(v_std_BGTL)


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


def _lag_relative_std(z_BGND: Tensor, lag_size: int) -> Tensor:
    """Channel std of a chunk's tokens, normalised by the next chunk's range (eq. 4-6), float32 [B, G, T, L].

    On CPU it takes operators on at most `_PIECE` elements. torch computes larger ones on several threads. On a loaded
    machine these wait for each other, at each of a dozen operators. Pieces also stay in the processor's cache.
    """
    if z_BGND.device.type != "cpu" or z_BGND.numel() <= _PIECE:
        return _std_at_once(z_BGND, lag_size)
    heads = [z_ND for z_GND in z_BGND.unbind() for z_ND in z_GND.unbind()]
    of_head = _std_at_once if heads[0].numel() <= _PIECE else _std_in_pieces
    return torch.stack([of_head(z_ND, lag_size) for z_ND in heads]).unflatten(0, z_BGND.shape[:2])


def _std_at_once(z_XND: Tensor, lag_size: int) -> Tensor:
    """`_lag_relative_std` of any number of leading dimensions."""
    z_XCLD = z_XND.float().unflatten(-2, (-1, lag_size))
    next_XTLD = z_XCLD[..., 1:, :, :]
    low, span = _low_and_span(next_XTLD.amin(dim=-2, keepdim=True), next_XTLD.amax(dim=-2, keepdim=True))
    return _std(_normalised(z_XCLD[..., :-1, :, :], low, span))


def _std_in_pieces(z_ND: Tensor, lag_size: int) -> Tensor:
    """`_lag_relative_std` of one head, [T, L]."""
    part, parts_of_piece = _sizes_of_pieces(lag_size, z_ND.shape[-1])
    parts, parts_of_chunk = z_ND.unflatten(0, (-1, part)), lag_size // part
    next_pieces = [piece.float() for piece in parts[parts_of_chunk:].split(parts_of_piece)]
    low = torch.cat([piece.amin(dim=1) for piece in next_pieces]).unflatten(0, (-1, parts_of_chunk)).amin(dim=1)
    high = torch.cat([piece.amax(dim=1) for piece in next_pieces]).unflatten(0, (-1, parts_of_chunk)).amax(dim=1)
    low_T1D, span_T1D = (z_TD.unsqueeze(1) for z_TD in _low_and_span(low, high))
    chunks = torch.arange(len(low)).repeat_interleave(parts_of_chunk).split(parts_of_piece)
    pieces = zip(parts[:-parts_of_chunk].split(parts_of_piece), chunks, strict=True)
    stds = [_std(_normalised(piece.float(), low_T1D[chunk], span_T1D[chunk])) for piece, chunk in pieces]
    return torch.cat(stds).view(-1, lag_size)


@cache
def _sizes_of_pieces(lag_size: int, dim: int) -> tuple[int, int]:
    """Tokens of a part, so many that it divides a chunk, and parts of a piece."""
    part = max(n for n in range(1, lag_size + 1) if lag_size % n == 0 and n * dim <= max(dim, _PIECE // 4))
    return part, max(1, (_PIECE - 1) // (part * dim))


def _low_and_span(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Half the lowest value of a channel, and half of its range."""
    # Halved before the subtractions: exact in binary, and no difference of finite float32 overflows.
    low, span = low / 2, high / 2 - low / 2
    # A channel without range says nothing about its tokens: it becomes 0, and still counts among the D.
    return low, span.masked_fill_(span == 0, torch.inf)


def _normalised(z: Tensor, low: Tensor, span: Tensor) -> Tensor:
    return (z / 2).sub_(low).div_(span).clamp_(-_NORMALISED_BOUND, _NORMALISED_BOUND)


def _std(z: Tensor) -> Tensor:
    """Over the last dimension, float32. On CPU torch's own is slow and sums in float64: two passes give its bits."""
    if z.device.type != "cpu":
        return z.std(dim=-1)
    centred = z.double()
    centred -= centred.mean(dim=-1, keepdim=True)
    return (torch.linalg.vector_norm(centred, dim=-1) / (z.shape[-1] - 1) ** 0.5).float()


def _softmax(std_BGTL: Tensor) -> Tensor:
    """Over the last dimension; on CPU row by row, since torch takes several threads for two rows."""
    if std_BGTL.device.type != "cpu":
        return std_BGTL.softmax(dim=-1)
    return torch.stack([row.softmax(dim=-1) for row in std_BGTL.flatten(0, -2)]).view_as(std_BGTL)


def _mix(x: Tensor | int) -> Tensor | int:
    """A 32-bit integer hash (two rounds of xor-shift-multiply), in int64 without overflow; ints give equal bits."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
