"""torch_npu's fused attention and LRSA on it, against float32 on the CPU.

Shape suffixes: B batch, N query heads, S tokens, D head size.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning.attention import LRSA, fill, naive
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import gather_tokens
from lrsa_lightning.npu.check.settings import BF16, Failed, Settings, error_of, on_npu, random, with_gradients

_NAMES = ("out", "dq", "dk", "dv")
# From [B, N, S, D]. TND concatenates the rows.
_LAYOUTS = {
    "BSH": lambda z: z.transpose(1, 2).flatten(2),
    "SBH": lambda z: z.permute(2, 0, 1, 3).flatten(2),
    "BSND": lambda z: z.transpose(1, 2),
    "BNSD": lambda z: z,
    "TND": lambda z: z.transpose(1, 2).flatten(0, 1),
}


def fused_attention(settings: Settings) -> dict:
    """npu_fusion_attention: sparse modes, layouts, grouped queries, head sizes; outputs and gradients."""
    worst = {}
    queries, keys = settings.size(300, 12), settings.size(500, 20)
    head_sizes = (64, 128) if not settings.small else (16,)
    for layout, mode, groups, dim in product(_LAYOUTS, (0, 2, 3, 4), (4, 1), head_sizes):
        name = f"{layout} mode {mode} G {groups} D {dim}"
        inputs = random(2, 4, queries, dim), random(2, groups, keys, dim, seed=1), random(2, groups, keys, dim, seed=2)
        expected = with_gradients(_reference(_hidden(mode, queries, keys)), inputs)
        got = with_gradients(partial(_fused, layout=layout, mode=mode), on_npu(*inputs))
        worst[name] = max(error_of(name, a, b, BF16) for a, b in zip(got, expected, strict=True))
    return {"worst_error": max(worst.values()), "cases": len(worst)}


def _hidden(mode: int, queries: int, keys: int) -> Tensor:
    """The mask of a sparse mode, True where a query does not see a key. Mode 0 hides at random, mode 4 is a band."""
    distance = torch.arange(keys) - torch.arange(queries)[:, None]
    if mode == 0:
        return (random(queries, keys, seed=3) > 1) & (distance != 0)
    if mode == 2:
        return distance > 0
    distance = distance - (keys - queries)
    return distance > 0 if mode == 3 else (distance > 0) | (distance < -5)


def _fused(q: Tensor, k: Tensor, v: Tensor, layout: str, mode: int) -> Tensor:
    """The output of the kernel in a layout, in [B, N, S, D]."""
    import torch_npu

    batch, heads, tokens, dim = q.shape
    to = _LAYOUTS[layout]
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1) if mode else _hidden(0, tokens, k.shape[2])
    options = {"pre_tockens": 5, "next_tockens": 0} if mode == 4 else {}
    if layout == "TND":
        ends = [[(b + 1) * z.shape[2] for b in range(batch)] for z in (q, k)]
        options |= {"actual_seq_qlen": ends[0], "actual_seq_kvlen": ends[1]}
    out = torch_npu.npu_fusion_attention(
        *(to(z).contiguous() for z in (q, k, v)), heads, layout,
        atten_mask=mask.to(q.device), scale=dim ** -0.5, sparse_mode=mode, **options,
    )[0]  # fmt: skip
    if layout == "BNSD":
        return out
    if layout == "SBH":
        return out.unflatten(-1, (heads, dim)).permute(1, 2, 0, 3)
    return out.reshape(batch, tokens, heads, dim).transpose(1, 2)


def _reference(hidden: Tensor) -> Callable[..., Tensor]:
    return partial(scaled_dot_product_attention, attn_mask=~hidden, enable_gqa=True)


def softmax_statistics(settings: Settings) -> dict:
    """The log-sum-exp from the kernel's max and sum, in BNSD and in TND."""
    import torch_npu

    q, k = random(2, 4, 24, 64), random(2, 2, 24, 64, seed=1)
    expected = (q / 8 @ k.repeat_interleave(2, dim=1).transpose(2, 3)).logsumexp(-1)
    on_device = on_npu(q, k, k)
    _, highest, total, *_ = torch_npu.npu_fusion_attention(*on_device, 4, "BNSD", scale=0.125)
    errors = {"bnsd": error_of("LSE", (highest + total.log())[..., 0], expected, 1e-2)}
    ends = {"actual_seq_qlen": [24, 48], "actual_seq_kvlen": [24, 48], "softmax_layout": "TND"}
    rows = [_LAYOUTS["TND"](z).contiguous() for z in on_device]
    _, highest, total, *_ = torch_npu.npu_fusion_attention(*rows, 4, "TND", scale=0.125, **ends)
    expected = _LAYOUTS["TND"](expected[..., None])[..., 0]
    errors["tnd"] = error_of("LSE in TND", (highest + total.log())[..., 0], expected, 1e-2)
    return errors


def merged_gradients(settings: Settings) -> dict:
    """Output and gradients of one softmax over keys in two tensors."""
    from lrsa_lightning.attention.fill_npu import MergedAttention

    queries, first = settings.size(256, 12), settings.size(700, 20)
    keys = first + queries
    inputs = random(2, 4, queries, 64), random(2, 2, keys, 64, seed=1), random(2, 2, keys, 64, seed=2)
    expected = with_gradients(_reference(_hidden(3, queries, keys)), inputs)

    def merged(q, k, v):
        parts = zip(k.split([first, queries], dim=2), v.split([first, queries], dim=2), strict=True)
        return MergedAttention.apply(q, 0.125, *(z.contiguous() for part in parts for z in part))

    got = with_gradients(merged, on_npu(*inputs))
    return {n: error_of(n, a, b, BF16) for n, a, b in zip(_NAMES, got, expected, strict=True)}


def lrsa_attention(settings: Settings) -> dict:
    """LRSA against `naive`: first the selection, then output and gradients over the same selection."""
    tokens, lag = settings.size(2048, 70), settings.size(64, 8)
    mode = LRSA(lag_size=lag, sink_size=16)
    inputs = random(1, 8, tokens, 64), random(1, 2, tokens, 64, seed=1), random(1, 2, tokens, 64, seed=2)
    on_device = on_npu(*inputs)
    idx = mode.rule().select(*inputs[1:])
    same = (mode.rule().select(*on_device[1:]).cpu() == idx).float().mean().item()
    if same < 0.999:
        raise Failed(f"only {same:.4f} of the selected tokens equal the CPU's")

    def filled(q, k, v):
        compact = gather_tokens(k, idx.to(k.device)), gather_tokens(v, idx.to(k.device))
        return fill.attend(q, compact, (k, v), KVLayout.of_sequence(mode.rule(), k.shape[2]))

    expected = with_gradients(lambda *z: naive.lrsa_attention(*z, mode), inputs)
    got = with_gradients(filled, on_device)
    errors = {n: error_of(n, a, b, BF16) for n, a, b in zip(_NAMES, got, expected, strict=True)}
    return {"same_selection": same} | errors


def attention_at_length(settings: Settings) -> dict:
    """Time and peak memory of forward and backward at 32K tokens in a layer of Qwen2.5-7B, vanilla and LRSA."""
    tokens = settings.size(32768, 128)
    mode = LRSA(lag_size=tokens // 32)
    inputs = on_npu(random(1, 28, tokens, 128), *[random(1, 4, tokens, 128)] * 2)
    vanilla = _measure(lambda *z: scaled_dot_product_attention(*z, is_causal=True, enable_gqa=True), inputs)
    return {"vanilla": vanilla, "lrsa": _measure(lambda *z: fill.lrsa_attention(*z, mode), inputs)}


def _measure(function, inputs) -> dict:
    with_gradients(function, inputs)
    torch.npu.synchronize()
    torch.npu.reset_peak_memory_stats()
    before, start = torch.npu.memory_allocated(), perf_counter()
    with_gradients(function, inputs)
    torch.npu.synchronize()
    gib = (torch.npu.max_memory_allocated() - before) / 2**30
    return {"milliseconds": round((perf_counter() - start) * 1e3, 2), "peak_gib": round(gib, 3)}
