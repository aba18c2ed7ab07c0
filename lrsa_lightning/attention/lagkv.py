"""LagKV's scores and selection as plain functions of keys, values and sizes: `LagRule` without a mode.

Shape suffixes: B batch, G KV heads, N tokens, D head size, P complete chunks, L lag, M kept per chunk.
"""

from torch import Tensor

from lrsa_lightning.attention.rule import LagRule, kept_per_chunk
from lrsa_lightning.attention.scorers import LagKVScorer


def score(k_BGND: Tensor, v_BGND: Tensor, lag_size: int, sink_size: int, v_weight: float = 1.0) -> Tensor:
    """LagKV scores of every chunk whose next chunk is complete.

    Args:
        k_BGND: keys after RoPE, [B, G, N, D], any dtype.
        v_BGND: values, same shape.
        lag_size: L, tokens in a chunk.
        sink_size: S, tokens before the first chunk.
        v_weight: weight of the values' score.

    Returns:
        float32 [B, G, max(P - 1, 0), L]; each row sums to 1 + v_weight.
    """
    return LagRule(sink_size, lag_size, lag_size, LagKVScorer(v_weight)).scores(k_BGND, v_BGND)


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
    kept = kept_per_chunk(lag_size, retention_ratio)
    return LagRule(sink_size, lag_size, kept, LagKVScorer(v_weight)).select(k_BGND, v_BGND)
