"""Fills of LRSA, and attention over keys in parts, through torch_npu's fused attention.

All fills of a layer are sequences of few calls in its TND layout. Each is a lower-right causal attention (sparse
mode 3), with G KV heads as they are. The operator is not on autocast's list, and it drops the gradients of its softmax
statistics without a warning. So its backward is called here, with the statistics that belong to the output.

Shape suffixes: B batch, H query heads, G KV heads, Q queries, K keys, D head size, T the tokens of all sequences of a
call, row by row.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
import torch_npu
from torch import Tensor

from lrsa_lightning.attention.layout import Fill

# Keys of a call: the fills' keys are copied side by side, which grows with N squared. Also below the operator's 2^20.
_KEYS_PER_CALL = 2**18
_SEQUENCES_PER_CALL = 1024
_LOWER_RIGHT_CAUSAL = 3
_STATISTICS = 8  # the operator repeats each of them so often


@cache
def _causal_mask(device: torch.device) -> Tensor:
    """The one mask of the compressed sparse modes, whatever the lengths; True hides, the opposite of SDPA."""
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)


class FusedFills(torch.autograd.Function):
    """Fills of one chunk each. Takes q [B, H, Q, D], compact and raw keys and values, the fills, the scale or None."""

    @staticmethod
    def forward(ctx, q, k_compact, v_compact, k_raw, v_raw, fills: Sequence[Fill], scale: float | None):
        ctx.scale = q.shape[-1] ** -0.5 if scale is None else scale
        ctx.calls = list(_calls(fills, q.shape[0]))
        outs, statistics = [], []
        for call in ctx.calls:
            k, v = _join(k_compact, k_raw, call), _join(v_compact, v_raw, call)
            out_THD, *both = torch_npu.npu_fusion_attention(
                _tokens(q, call), k, v, q.shape[1], "TND", scale=ctx.scale, **_sequences(call, q)
            )[:3]
            outs.append(out_THD.unflatten(0, (q.shape[0], -1)))
            statistics += [z[..., :1].contiguous() for z in both]
        out_BHQD = torch.cat(outs, dim=1).transpose(1, 2)
        ctx.save_for_backward(q, k_compact, v_compact, k_raw, v_raw, out_BHQD, *statistics)
        return out_BHQD

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        q, k_compact, v_compact, k_raw, v_raw, out, *statistics = ctx.saved_tensors
        # A key is seen by many fills: its gradient is summed in float32, whatever the keys' dtype.
        grads = [torch.zeros_like(z, dtype=torch.float32) for z in (k_compact, k_raw, v_compact, v_raw)]
        grads_q = []
        for index, call in enumerate(ctx.calls):
            k, v = _join(k_compact, k_raw, call), _join(v_compact, v_raw, call)
            highest, total = (z.expand(-1, -1, _STATISTICS).contiguous() for z in statistics[2 * index :][:2])
            grad_q, *joined = torch_npu.npu_fusion_attention_grad(
                _tokens(q, call), k, v, _tokens(grad_out, call), q.shape[1], "TND",
                softmax_max=highest, softmax_sum=total, attention_in=_tokens(out, call),
                scale_value=ctx.scale, **_sequences(call, q),
            )[:3]  # fmt: skip
            grads_q.append(grad_q.unflatten(0, (q.shape[0], -1)))
            for grad, (compact, raw) in zip(joined, (grads[:2], grads[2:]), strict=True):
                _add(grad.unflatten(0, (q.shape[0], -1)).transpose(1, 2), compact, raw, call)
        grad_kc, grad_kr, grad_vc, grad_vr = (grad.to(q.dtype) for grad in grads)
        return torch.cat(grads_q, dim=1).transpose(1, 2), grad_kc, grad_vc, grad_kr, grad_vr, None, None


def _calls(fills: Sequence[Fill], batch: int) -> Sequence[list[Fill]]:
    """Consecutive fills, as many to a call as its limits allow."""
    calls, num_keys = [], 0
    for fill in fills:
        keys = batch * fill.layout.num_keys
        if not calls or num_keys + keys > _KEYS_PER_CALL or batch * (len(calls[-1]) + 1) > _SEQUENCES_PER_CALL:
            calls.append([])
            num_keys = 0
        calls[-1].append(fill)
        num_keys += keys
    return calls


def _tokens(z_BHQD: Tensor, call: list[Fill]) -> Tensor:
    """The queries of a call, or what is shaped like them: [T, H, D]."""
    return z_BHQD[:, :, call[0].queries.start : call[-1].queries.stop].transpose(1, 2).flatten(0, 1).contiguous()


def _join(compact_BGKD: Tensor, raw_BGKD: Tensor, call: list[Fill]) -> Tensor:
    """The keys, or the values, of a call: [T, G, D]."""
    compact, raw = compact_BGKD.transpose(1, 2), raw_BGKD.transpose(1, 2)
    parts = [z for fill in call for z in (compact[:, : fill.layout.num_compact], raw[:, fill.raw])]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _add(joined_BGKD: Tensor, compact: Tensor, raw: Tensor, call: list[Fill]) -> None:
    """Adds the gradients of a call's joined keys to those of the keys they are copies of."""
    for fill, grad in zip(call, joined_BGKD.split([fill.layout.num_keys for fill in call], dim=2), strict=True):
        fill.add_gradient(grad, compact, raw)


def _sequences(call: list[Fill], q_BHQD: Tensor) -> dict:
    """Where the sequences of a call end, and who sees whom within each."""
    batch = q_BHQD.shape[0]
    return {
        "actual_seq_qlen": list(accumulate([fill.layout.num_queries for fill in call] * batch)),
        "actual_seq_kvlen": list(accumulate([fill.layout.num_keys for fill in call] * batch)),
        "atten_mask": _causal_mask(q_BHQD.device),
        "sparse_mode": _LOWER_RIGHT_CAUSAL,
    }


class MergedAttention(torch.autograd.Function):
    """Attention over keys in several tensors: a softmax over all of them, computed part by part.

    Takes q [B, H, Q, D], the scale, and k, v [B, G, K, D] of each part in turn. Queries see all keys of every part but
    the last, and of that one the lower-right causal triangle. Merging the parts' outputs under autograd would give the
    right output and wrong gradients.
    """

    @staticmethod
    def forward(ctx, q, scale: float, *keys_and_values: Tensor):
        ctx.scale = scale
        parts = list(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))
        results = [
            torch_npu.npu_fusion_attention(q, k, v, q.shape[1], "BNSD", scale=scale, **_part(index, parts, q))[:3]
            for index, (k, v) in enumerate(parts)
        ]
        highest = torch.stack([part_highest for _, part_highest, _ in results]).amax(0)
        sums = [total * (part_highest - highest).exp() for _, part_highest, total in results]
        total = torch.stack(sums).sum(0)
        shares = [(part_sum / total)[..., :1] for part_sum in sums]
        out = sum(part.float() * share for (part, _, _), share in zip(results, shares, strict=True)).to(q.dtype)
        ctx.save_for_backward(q, out, highest, total, *keys_and_values)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        q, out, highest, total, *keys_and_values = ctx.saved_tensors
        parts = list(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))
        grad_q, grads = torch.zeros_like(q, dtype=torch.float32), []
        for index, (k, v) in enumerate(parts):
            part_q, grad_k, grad_v = torch_npu.npu_fusion_attention_grad(
                q, k, v, grad_out.contiguous(), q.shape[1], "BNSD",
                softmax_max=highest, softmax_sum=total, attention_in=out,
                scale_value=ctx.scale, **_part(index, parts, q),
            )[:3]  # fmt: skip
            grad_q += part_q
            grads += [grad_k, grad_v]
        return grad_q.to(q.dtype), None, *grads


def _part(index: int, parts: Sequence[tuple[Tensor, Tensor]], q: Tensor) -> dict:
    is_last = index == len(parts) - 1
    return {"atten_mask": _causal_mask(q.device), "sparse_mode": _LOWER_RIGHT_CAUSAL} if is_last else {}
