"""The LRSA rule, its only copy: chunk arithmetic, scores, selection.

A sequence is a sink of S tokens followed by chunks of L tokens (the lag). A chunk is scored against the
chunk behind it and keeps its M = int(r * L) best tokens; later queries see only those (arXiv 2506.11498,
scores of LagKV, arXiv 2504.04704, equations 4-8).

Shape suffixes: B batch, G KV heads, N tokens, D head size, P complete chunks, T chunks scored, L lag,
M kept per chunk, C compact keys (sink, then kept tokens).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Far above any normalised key that means something, far below where its square over the channels overflows.
_NORMALISED_BOUND = 1e15


@dataclass(frozen=True)
class Chunking:
    """Where sink, chunks and kept tokens lie in a sequence. Positions and counts are tokens.

    Attributes:
        sink_size: S, tokens at the start that every query sees.
        lag_size: L, tokens in a chunk.
        kept: M, tokens of a chunk that survive its compression.
    """

    sink_size: int
    lag_size: int
    kept: int

    def complete_chunks(self, num_tokens: int) -> int:
        """P, the chunks that ``num_tokens`` tokens fill."""
        return max(0, (num_tokens - self.sink_size) // self.lag_size)

    def compressed_chunks(self, num_tokens: int) -> int:
        """Chunks that have a complete chunk behind them, so that they are compressed: max(P - 1, 0)."""
        return max(0, self.complete_chunks(num_tokens) - 1)

    def compact_len(self, num_tokens: int) -> int:
        """C, the keys kept for good among ``num_tokens`` tokens: the sink and M of each compressed chunk."""
        return min(self.sink_size, num_tokens) + self.compressed_chunks(num_tokens) * self.kept

    def raw_start(self, num_tokens: int) -> int:
        """Position of the first token behind the compressed chunks."""
        return min(self.sink_size, num_tokens) + self.compressed_chunks(num_tokens) * self.lag_size

    def stored_len(self, num_tokens: int) -> int:
        """Tokens a cache layer holds after ``num_tokens`` tokens: compact keys and everything behind them."""
        return self.compact_len(num_tokens) + num_tokens - self.raw_start(num_tokens)

    def chunk_of(self, position: int) -> int:
        """Chunk of a position; the sink counts as chunk 0, whose queries are plain causal too."""
        return max(0, (position - self.sink_size) // self.lag_size)

    def compact_visible(self, chunk: int) -> int:
        """Compact keys a query of ``chunk`` sees: the sink and the kept tokens of chunks 0 .. chunk-2."""
        return self.sink_size + max(0, chunk - 1) * self.kept

    def raw_visible(self, chunk: int) -> int:
        """First position a query of ``chunk`` sees uncompressed: the start of chunk - 1."""
        return self.sink_size + max(0, chunk - 1) * self.lag_size


def kept_per_chunk(lag_size: int, retention_ratio: float) -> int:
    """M = int(r * L)."""
    return int(retention_ratio * lag_size)


def _lag_relative_std(z_BGTLD: Tensor, next_BGTLD: Tensor) -> Tensor:
    """Softmax over a chunk's tokens of the channel std, normalised by the next chunk's range (eq. 4-7)."""
    # Halved before the subtractions: exact in binary, and no difference of finite float32 overflows.
    low = next_BGTLD.amin(dim=-2, keepdim=True) / 2
    span = next_BGTLD.amax(dim=-2, keepdim=True) / 2 - low
    normalised = ((z_BGTLD / 2 - low) / span).clamp(-_NORMALISED_BOUND, _NORMALISED_BOUND)
    # A channel without range says nothing about its tokens; it still counts among the D.
    return normalised.masked_fill(span == 0, 0.0).std(dim=-1).softmax(dim=-1)


@torch.no_grad()
def score_chunks(k_BGND: Tensor, v_BGND: Tensor, lag_size: int, v_weight: float = 1.0) -> Tensor:
    """Scores of consecutive complete chunks, each against the one behind it.

    Args:
        k_BGND: keys after RoPE of T + 1 whole chunks, N = (T + 1) * L.
        v_BGND: their values.
        lag_size: L.
        v_weight: weight of the values' score (eq. 8).

    Returns:
        float32 [B, G, T, L], whatever the dtype of the keys and whether or not autocast is on: in bf16,
        eager and compiled code choose different tokens.
    """
    with torch.autocast(k_BGND.device.type, enabled=False):
        k_BGTLD, v_BGTLD = (z.float().unflatten(2, (-1, lag_size)) for z in (k_BGND, v_BGND))
        k_score = _lag_relative_std(k_BGTLD[:, :, :-1], k_BGTLD[:, :, 1:])
        v_score = _lag_relative_std(v_BGTLD[:, :, :-1], v_BGTLD[:, :, 1:])
        return k_score + v_weight * v_score


def keep_best(scores_BGTL: Tensor, kept: int) -> Tensor:
    """Offsets, within the T scored chunks laid end to end, of each chunk's ``kept`` highest scores.

    Returns:
        int64 [B, G, T * M], ascending. Ties go to the lower position.
    """
    num_chunks, lag_size = scores_BGTL.shape[-2:]
    # topk promises no order among equals, a stable sort does.
    order = scores_BGTL.sort(dim=-1, descending=True, stable=True).indices
    best_BGTM = order[..., :kept].sort(dim=-1).values
    starts_T1 = torch.arange(num_chunks, device=scores_BGTL.device).unsqueeze(-1) * lag_size
    return (best_BGTM + starts_T1).flatten(-2)


def score(k_BGND: Tensor, v_BGND: Tensor, lag_size: int, sink_size: int, v_weight: float = 1.0) -> Tensor:
    """LagKV scores of every chunk that has a complete chunk behind it.

    Args:
        k_BGND: keys after RoPE, [B, G, N, D], any dtype.
        v_BGND: values, same shape.
        lag_size: L, tokens in a chunk.
        sink_size: S, tokens before the first chunk.
        v_weight: weight of the values' score.

    Returns:
        float32 [B, G, max(P - 1, 0), L]; each row sums to 1 + v_weight.
    """
    num_chunks = max(0, (k_BGND.shape[2] - sink_size) // lag_size)
    if num_chunks < 2:
        return k_BGND.new_zeros((*k_BGND.shape[:2], 0, lag_size), dtype=torch.float32)
    chunks = slice(sink_size, sink_size + num_chunks * lag_size)
    return score_chunks(k_BGND[:, :, chunks], v_BGND[:, :, chunks], lag_size, v_weight)


def select(
    k_BGND: Tensor,
    v_BGND: Tensor,
    lag_size: int,
    sink_size: int,
    retention_ratio: float,
    v_weight: float = 1.0,
) -> Tensor:
    """Positions that stay visible for good: the sink, then the kept tokens of each compressed chunk.

    Args:
        k_BGND: keys after RoPE, [B, G, N, D], any dtype.
        v_BGND: values, same shape.
        lag_size: L, tokens in a chunk.
        sink_size: S, tokens before the first chunk.
        retention_ratio: r; M = int(r * L) tokens of a chunk are kept.
        v_weight: weight of the values' score.

    Returns:
        int64 [B, G, min(S, N) + max(P - 1, 0) * M], ascending.
    """
    scores = score(k_BGND, v_BGND, lag_size, sink_size, v_weight)
    return compact_positions(scores, k_BGND.shape[2], sink_size, kept_per_chunk(lag_size, retention_ratio))


def compact_positions(scores_BGTL: Tensor, num_tokens: int, sink_size: int, kept: int) -> Tensor:
    """Positions of the compact keys, given the scores of every compressed chunk, by whatever scorer.

    Returns:
        int64 [B, G, min(S, N) + T * M], ascending: the sink, then each chunk's ``kept`` best.
    """
    sink = torch.arange(min(sink_size, num_tokens), device=scores_BGTL.device)
    kept_positions = keep_best(scores_BGTL, kept) + sink_size
    return torch.cat([sink.expand(*scores_BGTL.shape[:2], -1), kept_positions], dim=-1)


def gather_tokens(z_BGND: Tensor, idx_BGC: Tensor) -> Tensor:
    """The tokens ``idx_BGC`` of ``z_BGND``, [B, G, C, D]; differentiable in z."""
    return z_BGND.gather(2, idx_BGC.unsqueeze(-1).expand(-1, -1, -1, z_BGND.shape[-1]))
