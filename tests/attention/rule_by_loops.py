"""The rule once more, by loops over numbers in float64, without a line of the package. Tests compare with it.

Shape suffixes: H query heads, G KV heads, N tokens, D head size.
"""

import math
from statistics import stdev

import torch
from torch import Tensor


def score_of_chunk(z: list[list[float]], reference: list[list[float]]) -> list[float]:
    """Equations 4-7 of LagKV for one chunk: rows are tokens, columns channels."""
    low = [min(column) for column in zip(*reference, strict=True)]
    high = [max(column) for column in zip(*reference, strict=True)]
    normalised = [
        [(x - lo) / (hi - lo) if hi > lo else 0.0 for x, lo, hi in zip(token, low, high, strict=True)] for token in z
    ]
    spread = [math.exp(stdev(token)) for token in normalised]
    return [s / sum(spread) for s in spread]


def kept_positions(
    k_ND: Tensor, v_ND: Tensor, sink: int, lag: int, ratio: float, v_weight: float = 1.0, scorer: str = "lagkv"
) -> list[list[int]]:
    """The positions of one head that each chunk keeps once the next chunk is complete."""
    keys, values = k_ND.double().tolist(), v_ND.double().tolist()
    kept, start = [], sink
    while start + 2 * lag <= len(keys):
        here, following = slice(start, start + lag), slice(start + lag, start + 2 * lag)
        if scorer == "lagkv":
            of_keys = score_of_chunk(keys[here], keys[following])
            of_values = score_of_chunk(values[here], values[following])
            scores = [a + v_weight * b for a, b in zip(of_keys, of_values, strict=True)]
        else:
            scores = [-math.sqrt(sum(x * x for x in token)) for token in keys[here]]
        number = 0 if scorer == "window" else math.floor(ratio * lag)
        best = sorted(range(lag), key=lambda token, scores=scores: (-scores[token], token))[:number]
        kept.append(sorted(start + token for token in best))
        start += lag
    return kept


def attention(q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, sink: int, lag: int, *rule, scale: float) -> Tensor:
    """Attention, one query after the other: [H, N, D], differentiable. ``rule`` as in `kept_positions`."""
    heads = []
    for head, q_ND in enumerate(q_HND):
        group = head * len(k_GND) // len(q_HND)
        k_ND, v_ND = k_GND[group], v_GND[group]
        kept = kept_positions(k_ND.detach(), v_ND.detach(), sink, lag, *rule)
        rows = []
        for i, q_D in enumerate(q_ND):
            chunk = max(0, (i - sink) // lag)
            recent = range(min(sink + max(0, chunk - 1) * lag, i + 1), i + 1)
            seen = [*range(min(sink, i + 1)), *(p for of_chunk in kept[: max(0, chunk - 1)] for p in of_chunk), *recent]
            seen = sorted({*seen})
            weights = torch.softmax(k_ND[seen] @ q_D * scale, dim=0)
            rows.append(weights @ v_ND[seen])
        heads.append(torch.stack(rows))
    return torch.stack(heads)
