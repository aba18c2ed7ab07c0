"""Cross-entropy of a linear head that never holds the logits of a whole sequence.

Shape suffixes: B batch, N tokens, D hidden size, V vocabulary, T tokens with a target, C tokens of a piece.
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
) -> Tensor:
    """Weighted sum of the cross-entropies of all tokens that have a target.

    Args:
        hidden_BND: last hidden states.
        head: the output embedding, [*, D] -> [*, V].
        labels_BN: int64, already shifted: the target of each position, -100 where there is none.
        chunk_size: tokens whose logits exist at a time, in the forward and again in the backward.
        weights_BN: float32, weight of each position's loss; 1 for all when None.
        max_labels_per_rank: the most label tokens that any rank has. Where ranks hold parts of the head,
            all must call it equally often.

    Returns:
        float32 scalar (float64 for float64 input); 0, still attached to the graph, when no token has a target.
    """
    has_target_BN = labels_BN != IGNORE_INDEX
    # Only the answer's positions meet the head: in long-context tuning they are a percent of the tokens.
    weights_BN = torch.ones_like(labels_BN, dtype=torch.float32) if weights_BN is None else weights_BN
    hidden_TD, labels_T, weights_T = (z[has_target_BN] for z in (hidden_BND, labels_BN, weights_BN))
    num_pieces = max(1, -(-max(len(labels_T), max_labels_per_rank) // chunk_size))
    pieces = zip(*(z.tensor_split(num_pieces) for z in (hidden_TD, labels_T, weights_T)), strict=True)
    return torch.stack([checkpoint(_chunk_loss, head, *piece, use_reentrant=False) for piece in pieces]).sum()


def _chunk_loss(head: torch.nn.Module, hidden_CD: Tensor, labels_C: Tensor, weights_C: Tensor) -> Tensor:
    logits_CV = head(hidden_CD)
    return (cross_entropy(logits_CV.to(_loss_dtype(logits_CV)), labels_C, reduction="none") * weights_C).sum()


def _loss_dtype(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)
