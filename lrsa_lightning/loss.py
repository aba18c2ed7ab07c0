"""Cross-entropy of a linear head that never holds the logits of a complete sequence.

Shape suffixes: B batch, N tokens, D hidden size, V vocabulary, T label tokens, C label tokens of a chunk.
At 32K tokens and Qwen2.5's vocabulary one copy of the logits is 18.5 GiB in float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100


def linear_cross_entropy(
    hidden_BND: Tensor,
    head: torch.nn.Module,
    labels_BN: Tensor,
    chunk_size: int = 1024,
    weights_BN: Tensor | None = None,
    max_labels_per_rank: int = 0,
    positions_T: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the cross-entropies of all label tokens.

    Args:
        hidden_BND: last hidden states.
        head: the output embedding, [*, D] -> [*, V].
        labels_BN: int64, already shifted: the label of each position, -100 where there is none.
        chunk_size: label tokens whose logits exist at a time, in the forward and again in the backward.
        weights_BN: float32, weight of each position's loss; 1 for all when None.
        max_labels_per_rank: label tokens of the rank that has the most. Ranks that shard the head must all call it
            equally often.
        positions_T: int64, the `label_positions` of these labels. Without them the host waits for the device.

    Returns:
        float32 scalar (float64 for float64 input); 0, still attached to the graph, when there are no label tokens.
    """
    positions_T = label_positions(labels_BN) if positions_T is None else positions_T
    # The head runs on label tokens alone: in long-context tuning they are a percent of all tokens.
    weights_BN = torch.ones_like(labels_BN, dtype=torch.float32) if weights_BN is None else weights_BN
    hidden_TD, labels_T, weights_T = (
        z.flatten(0, 1).index_select(0, positions_T) for z in (hidden_BND, labels_BN, weights_BN)
    )
    num_chunks = max(1, -(-max(len(labels_T), max_labels_per_rank) // chunk_size))
    chunks = zip(*(z.tensor_split(num_chunks) for z in (hidden_TD, labels_T, weights_T)), strict=True)
    return torch.stack([checkpoint(_chunk_loss, head, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def label_positions(labels_BN: Tensor) -> Tensor:
    """Where rows that follow one another have their label tokens: int64 [T], ascending."""
    return (labels_BN.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


def _chunk_loss(head: torch.nn.Module, hidden_CD: Tensor, labels_C: Tensor, weights_C: Tensor) -> Tensor:
    logits_CV = head(hidden_CD)
    dtype = torch.promote_types(logits_CV.dtype, torch.float32)
    return (cross_entropy(logits_CV.to(dtype), labels_C, reduction="none") * weights_C).sum()
