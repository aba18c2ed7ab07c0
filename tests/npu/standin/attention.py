"""npu_fusion_attention and its gradient in float32 on the CPU, written from torch_npu's documentation.

What the documentation forbids is refused here too, so that a call the hardware would not take fails in a test.

Shape suffixes: H query heads, G KV heads, Q queries, K keys of one sequence, D head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_TO_BNSD = {
    "BSH": lambda z, heads: z.unflatten(-1, (heads, -1)).transpose(1, 2),
    "SBH": lambda z, heads: z.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3),
    "BSND": lambda z, heads: z.transpose(1, 2),
    "BNSD": lambda z, heads: z,
}
_COMPRESSED = 2048
_SEED = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)  # of dropout, and its offset


@dataclass(frozen=True)
class Call:
    """The arguments that forward and backward must agree on."""

    heads: int
    kv_heads: int
    layout: str
    scale: float
    sparse_mode: int
    pre: int
    next: int
    mask: Tensor | None
    q_ends: list[int] | None
    kv_ends: list[int] | None
    stat_layout: str

    def check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        assert q.dtype == k.dtype == v.dtype, f"query, key and value differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}"
        assert q.dtype in (torch.float16, torch.bfloat16, torch.float32), f"unsupported dtype {q.dtype}"
        assert self.sparse_mode in (0, 1, 2, 3, 4), f"sparse_mode {self.sparse_mode} is not needed here"
        if self.mask is not None:
            assert self.mask.dtype in (torch.bool, torch.uint8), "atten_mask must be bool or uint8"
            if self.sparse_mode in (2, 3, 4):
                expected = torch.ones(_COMPRESSED, _COMPRESSED, dtype=torch.bool).triu(1)
                assert torch.equal(self.mask.bool(), expected), "sparse modes 2 to 4 take triu(ones(2048, 2048), 1)"
        if self.layout == "TND":
            assert len(self.q_ends) == len(self.kv_ends) <= 1024
            assert self.q_ends[-1] == q.shape[0]
            assert self.kv_ends[-1] == k.shape[0]
            assert k.shape[0] <= 1 << 20

    def hidden(self, num_queries: int, num_keys: int, row: int, head: int) -> Tensor | None:
        """True where a query must not see a key: [Q, K]."""
        if self.mask is None:
            return None
        if self.sparse_mode in (0, 1):
            mask = self.mask.bool()
            mask = mask[(None,) * (4 - mask.dim())]
            assert mask.shape[-2:] == (num_queries, num_keys), f"atten_mask {tuple(self.mask.shape)}"
            return mask[row % mask.shape[0], head % mask.shape[1]]
        distance = torch.arange(num_keys) - torch.arange(num_queries)[:, None]
        if self.sparse_mode == 2:
            return distance > 0
        distance = distance - (num_keys - num_queries)
        return distance > 0 if self.sparse_mode == 3 else (distance > self.next) | (distance < -self.pre)

    def sequences(self, *tensors: tuple[Tensor, str]) -> Iterator[tuple[Tensor, ...]]:
        """Views [heads, S, D] of each sequence; the word says whether a tensor follows queries, keys or statistics."""
        ends = {"q": self.q_ends, "k": self.kv_ends, "stat": self.q_ends}
        first = tensors[0][0]
        rows = {"TND": len(self.q_ends or ()), "SBH": first.shape[1]}.get(self.layout, first.shape[0])
        for row in range(rows):
            yield tuple(self._sequence(z, kind, row, ends[kind]) for z, kind in tensors)

    def _sequence(self, z: Tensor, kind: str, row: int, ends: list[int] | None) -> Tensor:
        if self.layout == "TND":
            begin = ends[row - 1] if row else 0
            if kind == "stat" and self.stat_layout != "TND":
                # The default order of the statistics is NTD, in the same memory.
                return z.view(z.shape[1], z.shape[0], z.shape[2])[:, begin : ends[row]]
            return z[begin : ends[row]].transpose(0, 1)
        if kind == "stat":
            return z[row]
        return _TO_BNSD[self.layout](z, self.heads if kind == "q" else self.kv_heads)[row]


def forward(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and softmax_max and softmax_sum as the layout has them, their last axis repeated eight times."""
    call.check(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype)
    statistics = [torch.empty(_statistics_shape(call, q), dtype=torch.float32) for _ in range(2)]
    parts = call.sequences((q, "q"), (k, "k"), (v, "k"), (out, "q"), *((z, "stat") for z in statistics))
    for row, (q_HQD, k_GKD, v_GKD, out_HQD, max_HQ8, sum_HQ8) in enumerate(parts):
        for head in range(q_HQD.shape[0]):
            group = head * k_GKD.shape[0] // q_HQD.shape[0]
            logits = q_HQD[head].float() @ k_GKD[group].float().T * call.scale
            hidden = call.hidden(*logits.shape, row, head)
            highest = _hide(logits, hidden).amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
            weights = (logits - highest).exp()
            total = weights.sum(-1, keepdim=True)
            out_HQD[head].copy_(weights @ v_GKD[group].float() / total.clamp(min=1e-30))
            max_HQ8[head].copy_(highest.expand(-1, 8))
            sum_HQ8[head].copy_(total.expand(-1, 8))
    return out, *statistics


def backward(
    call: Call, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, highest: Tensor, total: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from the statistics and the output it is given: those may be of a wider softmax."""
    call.check(q, k, v)
    grads = [torch.zeros_like(z, dtype=torch.float32, memory_format=torch.contiguous_format) for z in (q, k, v)]
    kinds = "q", "k", "k", "q", "stat", "stat", "q", "q", "k", "k"
    tensors = (q, k, v, grad, highest, total, out, *grads)
    for row, parts in enumerate(call.sequences(*zip(tensors, kinds, strict=True))):
        q_HQD, k_GKD, v_GKD, grad_HQD, max_HQ8, sum_HQ8, out_HQD, dq_HQD, dk_GKD, dv_GKD = parts
        for head in range(q_HQD.shape[0]):
            group = head * k_GKD.shape[0] // q_HQD.shape[0]
            query, key, value, dout = (z.float() for z in (q_HQD[head], k_GKD[group], v_GKD[group], grad_HQD[head]))
            logits = query @ key.T * call.scale
            logits = _hide(logits, call.hidden(*logits.shape, row, head))
            weights = (logits - max_HQ8[head, :, :1]).exp() / sum_HQ8[head, :, :1].clamp(min=1e-30)
            delta = (dout * out_HQD[head].float()).sum(-1, keepdim=True)
            dlogits = weights * (dout @ value.T - delta) * call.scale
            dq_HQD[head] += dlogits @ key
            dk_GKD[group] += dlogits.T @ query
            dv_GKD[group] += weights.T @ dout
    return tuple(g.to(z.dtype) for g, z in zip(grads, (q, k, v), strict=True))


def _hide(logits: Tensor, hidden: Tensor | None) -> Tensor:
    return logits if hidden is None else logits.masked_fill_(hidden, float("-inf"))


def _statistics_shape(call: Call, q: Tensor) -> tuple[int, ...]:
    if call.layout == "TND":
        return q.shape[0], q.shape[1], 8
    return *_TO_BNSD[call.layout](q, call.heads).shape[:3], 8


def kernels(host: Callable[[Tensor], Tensor], device: Callable) -> dict[str, Callable]:
    """The four operators, given how a tensor is seen by the CPU and how a result is brought to the device."""

    def attention(given: dict) -> tuple:
        results = forward(_call(given, host), *(host(given[name]) for name in ("query", "key", "value")))
        return *(device(z, given["query"].device) for z in results), given["query"].new_empty(0)

    def gradient(given: dict) -> tuple:
        names = "query", "key", "value", "dy", "softmax_max", "softmax_sum", "attention_in"
        grads = backward(_call(given, host), *(host(given[name]) for name in names))
        return *(device(z, given["query"].device) for z in grads), *given["query"].new_empty(2, 0)

    return {
        "npu_fusion_attention": _named("npu_fusion_attention", lambda given: (*attention(given), 0, 0, 0)),
        "npu_fusion_attention_v3": _named("npu_fusion_attention_v3", lambda given: (*attention(given), *_SEED)),
        "npu_fusion_attention_grad": _named("npu_fusion_attention_grad", gradient),
        "npu_fusion_attention_grad_v3": _named("npu_fusion_attention_grad_v3", gradient),
    }


def _named(operator: str, kernel: Callable[[dict], tuple]) -> Callable:
    """The kernel of an operator, given its arguments by their names in the schema."""
    defaults = {a.name: a.default_value for a in getattr(torch.ops.npu, operator).default._schema.arguments}
    return lambda *args, **kwargs: kernel(defaults | dict(zip(defaults, args, strict=False)) | kwargs)


def _call(given: dict, host: Callable[[Tensor], Tensor]) -> Call:
    ends = (given["actual_seq_qlen"], given["actual_seq_kvlen"])
    q_ends, kv_ends = (None if z is None else [int(end) for end in z] for z in ends)
    heads = given["head_num"]
    return Call(
        heads=heads,
        # A flat last axis holds all heads: the keys' is as much smaller as there are fewer of them.
        kv_heads=heads * given["key"].shape[-1] // given["query"].shape[-1],
        layout=given["input_layout"],
        scale=given["scale"] if "scale" in given else given["scale_value"],
        sparse_mode=given["sparse_mode"],
        pre=given["pre_tockens"],
        next=given["next_tockens"],
        mask=None if given["atten_mask"] is None else host(given["atten_mask"]),
        q_ends=q_ends,
        kv_ends=kv_ends,
        stat_layout=given["softmax_layout"],
    )
