"""The compressed cache under `torch.compile`: one operator a layer writes the new tokens, attends and compresses.

A graph cannot follow counts that grow with each token. So it knows the cache by a number alone, and the operator does
with it what is done without a compiler. One graph serves all steps, and any cache of the same kind.

Shape suffixes: B batch, H query heads, G KV heads, N tokens so far, n new tokens, D head size.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.rows import check_traced
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.scorers import make_scorer

_CACHES: "WeakValueDictionary[int, Any]" = WeakValueDictionary()
_NUMBERS = count()


def number_of(cache) -> Tensor:
    """A new number by which graphs know a `LagKVCache`, int64 [] on the host: a graph takes any value of it."""
    number = next(_NUMBERS)
    _CACHES[number] = cache
    return torch.tensor(number, device="cpu")


@torch.library.custom_op("lrsa::attend_cached", mutates_args=())
def attend_cached(
    q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, mask_BN: Tensor | None, begins_BN: Tensor | None,
    causal: Tensor | None, positions: Tensor | None, number: Tensor, sizes: Sequence[int], scorer: str, v_weight: float,
    seed: int, backend: str, chunks_per_fill: int, layer_idx: int, scale: float | None,
) -> Tensor:  # fmt: skip
    """Attention of new tokens over a cache, which takes them in: [B, H, n, D].

    Args:
        q_BHnD: queries after RoPE.
        k_BGnD: their keys.
        v_BGnD: their values.
        mask_BN: the attention mask of the forward; None where all columns are tokens.
        begins_BN: of `check_traced`.
        causal: of `check_traced`.
        positions: of `check_traced`.
        number: of the cache.
        sizes: S, L, kept tokens a chunk and the first KV head.
        scorer: name of the rule's scorer.
        v_weight: of the scorer.
        seed: of the scorer.
        backend: of the execution.
        chunks_per_fill: of the execution.
        layer_idx: the decoder layer.
        scale: of the logits; 1 / sqrt(D) when None.

    Raises:
        InputError: of `check_traced`, or the cache follows another rule.
    """
    check_traced(causal, positions, begins_BN, q_BHnD.shape[2], layer_idx)
    cache, rule = _CACHES[int(number)], LagRule(*sizes[:3], make_scorer(scorer, v_weight, seed), sizes[3])
    layer = cache.layers[layer_idx]
    if layer.begins_forward:
        cache.counts.announce(mask_BN)
    cache.update(k_BGnD, v_BGnD, layer_idx)
    return layer.attend(q_BHnD, rule, rule, Execution(backend, chunks_per_fill), scale).contiguous()


@attend_cached.register_fake
def _(q_BHnD, k_BGnD, v_BGnD, *_):
    return q_BHnD.new_empty(*q_BHnD.shape[:-1], v_BGnD.shape[-1])
