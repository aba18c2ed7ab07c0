"""LRSA under `torch.compile`: one operator, which a compiler calls and does not look into.

The rule's sizes depend on the length and on what the rows hold, so a graph of it would be another one for each length.
The operator's backward computes the forward once more.

Shape suffixes: B batch, H query heads, G KV heads, N tokens, D head size.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.compiled_cache import attend_cached
from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.packing import boundaries_from_starts
from lrsa_lightning.attention.rows import TracedRows, check_traced, refuse_mask, says_rows_are_known
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.scorers import make_scorer


def attend(
    mode, module, states: Sequence[Tensor], mask, scale, cache, cu_seqlens, arguments: dict[str, Any]
) -> tuple[Tensor, None]:
    """What `LRSA` computes of complete rows, or of new tokens and a cache, as a node of a graph.

    Args:
        mode: an `LRSA`.
        module: the attention layer.
        states: queries, keys and values of complete rows, or of the new tokens.
        mask: what `find_rows` returned, or a `mask_of_known_rows`.
        scale: of the logits; 1 / sqrt(D) when None.
        cache: the `LagKVCache` in use, if any.
        cu_seqlens: boundaries of packed samples.
        arguments: of the call, by name: position_ids and use_cache.

    Returns:
        [B, N, H, D], and no attention weights.
    """
    positions = arguments.get("position_ids")
    rule = mode.rule(module.layer_idx)
    sizes = [rule.sink_size, rule.lag_size, rule.kept, rule.first_kv_head]
    settings = sizes, mode.scorer, mode.v_weight, mode.seed, mode.backend, mode.chunks_per_fill, module.layer_idx, scale
    boundaries = None if cu_seqlens is None else list(chain.from_iterable(cu_seqlens))
    starts = causal = None
    if isinstance(mask, TracedRows):
        starts, causal = (mask.begins_BN if boundaries is None else None), mask.is_causal
    elif mask is not None and not says_rows_are_known(mask):
        refuse_mask(mask, module.layer_idx)
    if module.layer_idx > 0 or boundaries is not None or says_rows_are_known(mask):
        positions = None
    if cache is None:
        out_BHND = _attend(*states, starts, causal, positions, boundaries, *settings)
    else:
        mask_BN = mask.arguments.get("attention_mask") if isinstance(mask, TracedRows) else None
        out_BHND = attend_cached(*states, mask_BN, starts, causal, positions, cache.number, *settings)
    return out_BHND.transpose(1, 2).contiguous(), None


@torch.library.custom_op("lrsa::attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, causal: Tensor | None, positions: Tensor | None,
    boundaries: Sequence[int] | None, sizes: Sequence[int], scorer: str, v_weight: float, seed: int, backend: str,
    chunks_per_fill: int, layer_idx: int, scale: float | None,
) -> Tensor:  # fmt: skip
    check_traced(causal, positions, starts, q.shape[2], layer_idx)
    rule = LagRule(*sizes[:3], make_scorer(scorer, v_weight, seed), sizes[3])
    rows = _rows(boundaries) if starts is None else boundaries_from_starts(starts.expand(len(q), -1))
    execution = Execution(backend, chunks_per_fill)
    return execution.attend_sequence(q, k, v, rule, scale, layer_idx, rows).contiguous()


def _rows(boundaries: Sequence[int] | None) -> list[list[int]] | None:
    """The boundaries of each row, out of those of all rows: each begins at 0."""
    if boundaries is None:
        return None
    rows: list[list[int]] = []
    for at in boundaries:
        if at == 0:
            rows.append([])
        rows[-1].append(at)
    return rows


@_attend.register_fake
def _(q, k, v, *_):
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.custom_op("lrsa::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, boundaries: Sequence[int] | None,
    sizes: Sequence[int], scorer: str, v_weight: float, seed: int, backend: str, chunks_per_fill: int, layer_idx: int,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rule = LagRule(*sizes[:3], make_scorer(scorer, v_weight, seed), sizes[3])
    rows = _rows(boundaries) if starts is None else boundaries_from_starts(starts.expand(len(q), -1))
    with torch.enable_grad(), _differentiable():
        states = [z.detach().requires_grad_() for z in (q, k, v)]
        out = Execution(backend, chunks_per_fill).attend_sequence(*states, rule, scale, layer_idx, rows)
        grads = torch.autograd.grad(out, states, grad)
    return tuple(z.contiguous() for z in grads)


def _differentiable():
    """Within an operator torch records no graph, by keys that it excludes; it has no public way to include them again.

    A second thread would have them. But autograd runs on a device's one thread, which waits for the operator.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "ADInplaceOrView"):
        excluded = excluded.remove(torch._C._dispatch_key_parse(key))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


@_attend_backward.register_fake
def _(grad, q, k, v, *_):
    return tuple(torch.empty_like(z, memory_format=torch.contiguous_format) for z in (q, k, v))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    q, k, v, starts, _causal, _positions, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, starts)


def _backward(ctx, grad: Tensor) -> tuple:
    return *_attend_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * (3 + len(ctx.settings))


_attend.register_autograd(_backward, setup_context=_save)
