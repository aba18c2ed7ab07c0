"""Compresses chunks in a paged KV cache, whatever its memory format: reads, selects, moves.

Shape suffixes: R requests, G KV heads, N tokens, D head size, C blocks, T moved tokens.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.rule import LagRule, gather_tokens
from lrsa_lightning.attention.scorers import RandomScorer
from lrsa_lightning.serving.vllm.steps import Move


def compress(
    move: Move,
    rule: LagRule,
    layer_idx: int,
    read: Callable[[Tensor], tuple[Tensor, Tensor]],
    write: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    """Moves the kept tokens of some chunks to their slots, in one layer.

    Args:
        move: the chunks.
        rule: of the layer, with the KV heads of this rank.
        layer_idx: the decoder layer.
        read: keys and values [R, G, C * B, D] of blocks, given their ids [R, C].
        write: given slots [R * T], keys and values [R * T, G, D].
    """
    k_RGND, v_RGND = read(move.blocks_RC)
    offset = move.layout.offset
    if rule.kept:
        chunks = slice(offset, offset + 2 * rule.lag_size)
        k_RGND, v_RGND = k_RGND[:, :, chunks], v_RGND[:, :, chunks]
        kept_RGM = _kept(move, rule, layer_idx, k_RGND, v_RGND)
        moved = gather_tokens(k_RGND, kept_RGM), gather_tokens(v_RGND, kept_RGM)
    else:
        moved = k_RGND[:, :, :offset], v_RGND[:, :, :offset]
    write(move.slots_RT.flatten(), *(z_RGTD.transpose(1, 2).flatten(0, 1).contiguous() for z_RGTD in moved))


def _kept(move: Move, rule: LagRule, layer_idx: int, k_RGND: Tensor, v_RGND: Tensor) -> Tensor:
    """Offsets of the kept tokens, int64 [R, G, M], with one selection for all requests that can share it."""
    kept = [
        Execution().keep_best(rule, k_RGND[rows], v_RGND[rows], layer_idx, rule.sink_size + chunk * rule.lag_size)
        for rows, chunk in _selections(move, rule)
    ]
    return kept[0] if len(kept) == 1 else torch.cat(kept)


def _selections(move: Move, rule: LagRule) -> Iterator[tuple[slice, int]]:
    """Requests that share a selection, and a chunk of theirs. Only a hash depends on where the chunk is."""
    if not isinstance(rule.scorer, RandomScorer):
        yield slice(None), move.chunks[0]
        return
    for request, chunk in enumerate(move.chunks):
        yield slice(request, request + 1), chunk
