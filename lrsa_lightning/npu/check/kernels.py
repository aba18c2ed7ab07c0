"""Versions, and torch_npu's kernels against float32 on the CPU.

Shape suffixes: B batch, N query heads, S tokens, D head size.
"""

import platform
from itertools import product
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import gather_tokens
from lrsa_lightning.npu.check.settings import Failed, Settings, error_of, random

_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_BF16 = 2e-2
# From [B, N, S, D]; TND takes the rows one behind the other.
_LAYOUTS = {
    "BSH": lambda z: z.transpose(1, 2).flatten(2),
    "SBH": lambda z: z.permute(2, 0, 1, 3).flatten(2),
    "BSND": lambda z: z.transpose(1, 2),
    "BNSD": lambda z: z,
    "TND": lambda z: z.transpose(1, 2).flatten(0, 1),
}


def versions(settings: Settings) -> dict:
    """torch and torch_npu of one line, CANN known, bfloat16, memory."""
    import torch_npu
    from torch_npu.utils.collect_env import get_cann_version

    cann = get_cann_version()
    found = {
        "torch": torch.__version__,
        "torch_npu": torch_npu.__version__,
        "cann": cann,
        "driver": _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else "not known",
        "python": platform.python_version(),
        "soc": torch.npu.get_device_name(0),
        "devices": torch.npu.device_count(),
        "hbm_gib": round(torch.npu.mem_get_info(0)[1] / 2**30, 1),
        "bf16": torch.npu.is_bf16_supported(),
    }
    if cann == "not known" or not found["bf16"] or found["devices"] < settings.devices:
        raise Failed(f"CANN, bfloat16 or devices are missing: {found}")
    return found


def fused_attention(settings: Settings) -> dict:
    """npu_fusion_attention: sparse modes, layouts, grouped queries, head sizes; outputs and gradients."""
    worst = {}
    queries, keys = settings.size(300, 12), settings.size(500, 20)
    head_sizes = (64, 128) if not settings.small else (16,)
    for layout, mode, groups, dim in product(_LAYOUTS, (0, 2, 3, 4), (4, 1), head_sizes):
        name = f"{layout} mode {mode} G {groups} D {dim}"
        inputs = random(2, 4, queries, dim), random(2, groups, keys, dim, seed=1), random(2, groups, keys, dim, seed=2)
        hidden = _hidden(mode, queries, keys)
        expected = _with_gradients(lambda q, k, v, hidden=hidden: _reference(q, k, v, hidden), inputs)
        on_device = [z.to("npu", torch.bfloat16) for z in inputs]
        got = _with_gradients(lambda *z, call=(layout, mode): _fused(*z, *call), on_device)
        worst[name] = max(error_of(name, a, b, _BF16) for a, b in zip(got, expected, strict=True))
    return {"worst_error": max(worst.values()), "cases": len(worst)}


def _hidden(mode: int, queries: int, keys: int) -> Tensor:
    """True where a query does not see a key; mode 0 hides at random, mode 4 is a band."""
    distance = torch.arange(keys) - torch.arange(queries)[:, None]
    if mode == 0:
        return (random(queries, keys, seed=3) > 1) & (distance != 0)
    if mode == 2:
        return distance > 0
    distance = distance - (keys - queries)
    return distance > 0 if mode == 3 else (distance > 0) | (distance < -5)


def _fused(q: Tensor, k: Tensor, v: Tensor, layout: str, mode: int) -> Tensor:
    """The kernel in a layout, back in [B, N, S, D]."""
    import torch_npu

    to = _LAYOUTS[layout]
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1) if mode else _hidden(0, q.shape[2], k.shape[2])
    options = {"pre_tockens": 5, "next_tockens": 0} if mode == 4 else {}
    if layout == "TND":
        options |= {
            "actual_seq_qlen": [(b + 1) * q.shape[2] for b in range(q.shape[0])],
            "actual_seq_kvlen": [(b + 1) * k.shape[2] for b in range(q.shape[0])],
        }
    out = torch_npu.npu_fusion_attention(
        to(q).contiguous(), to(k).contiguous(), to(v).contiguous(), q.shape[1], layout,
        atten_mask=mask.to(q.device), scale=q.shape[-1] ** -0.5, sparse_mode=mode, **options,
    )[0]  # fmt: skip
    batch, heads, tokens, dim = q.shape
    if layout == "BNSD":
        return out
    if layout == "SBH":
        return out.unflatten(-1, (heads, dim)).permute(1, 2, 0, 3)
    return out.reshape(batch, tokens, heads, dim).transpose(1, 2)


def _reference(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=~hidden, enable_gqa=True)


def _with_gradients(function, inputs) -> list[Tensor]:
    inputs = [z.detach().requires_grad_() for z in inputs]
    out = function(*inputs)
    weights = random(*out.shape, seed=4).to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def softmax_statistics(settings: Settings) -> dict:
    """LSE = max + log(sum), also in the order of TND."""
    import torch_npu

    q, k = random(2, 4, 24, 64), random(2, 2, 24, 64, seed=1)
    expected = (q / 8 @ k.repeat_interleave(2, dim=1).transpose(2, 3)).logsumexp(-1)
    on_device = [z.to("npu", torch.bfloat16) for z in (q, k, k)]
    _, highest, total, *_ = torch_npu.npu_fusion_attention(*on_device, 4, "BNSD", scale=0.125)
    errors = {"bnsd": error_of("LSE", (highest + total.log())[..., 0], expected, 1e-2)}
    ends = {"actual_seq_qlen": [24, 48], "actual_seq_kvlen": [24, 48], "softmax_layout": "TND"}
    rows = [_LAYOUTS["TND"](z).contiguous() for z in on_device]
    _, highest, total, *_ = torch_npu.npu_fusion_attention(*rows, 4, "TND", scale=0.125, **ends)
    errors["tnd"] = error_of(
        "LSE in TND", (highest + total.log())[..., 0], _LAYOUTS["TND"](expected[..., None])[..., 0], 1e-2
    )
    return errors


def merged_gradients(settings: Settings) -> dict:
    """A softmax over keys in two places, computed part by part."""
    from lrsa_lightning.attention.fill_npu import MergedAttention

    queries, first = settings.size(256, 12), settings.size(700, 20)
    keys = first + queries
    inputs = random(2, 4, queries, 64), random(2, 2, keys, 64, seed=1), random(2, 2, keys, 64, seed=2)
    expected = _with_gradients(lambda *z: _reference(*z, _hidden(3, queries, keys)), inputs)

    def merged(q, k, v):
        parts = zip(k.split([first, queries], dim=2), v.split([first, queries], dim=2), strict=True)
        return MergedAttention.apply(q, 0.125, *(z.contiguous() for part in parts for z in part))

    got = _with_gradients(merged, [z.to("npu", torch.bfloat16) for z in inputs])
    names = "out", "dq", "dk", "dv"
    return {n: error_of(n, a, b, _BF16) for n, a, b in zip(names, got, expected, strict=True)}


def lrsa_attention(settings: Settings) -> dict:
    """LRSA against `naive`: what is selected, then output and gradients over the same selection."""
    tokens, lag = settings.size(2048, 70), settings.size(64, 8)
    mode = LRSA(lag_size=lag, sink_size=16)
    inputs = random(1, 8, tokens, 64), random(1, 2, tokens, 64, seed=1), random(1, 2, tokens, 64, seed=2)
    on_device = [z.to("npu", torch.bfloat16) for z in inputs]
    idx = mode.rule().select(*inputs[1:])
    same = (mode.rule().select(*on_device[1:]).cpu() == idx).float().mean().item()
    if same < 0.999:
        raise Failed(f"only {same:.4f} of the selected tokens are the CPU's")

    def filled(q, k, v):
        compact = gather_tokens(k, idx.to(k.device)), gather_tokens(v, idx.to(k.device))
        return fill.attend(q, compact, (k, v), KVLayout.of_sequence(mode.rule(), k.shape[2]))

    expected = _with_gradients(lambda *z: naive.lrsa_attention(*z, mode), inputs)
    got, names = _with_gradients(filled, on_device), ("out", "dq", "dk", "dv")
    return {"same_selection": same} | {
        n: error_of(n, a, b, _BF16) for n, a, b in zip(names, got, expected, strict=True)
    }


def attention_at_length(settings: Settings) -> dict:
    """Seconds and peak memory of forward and backward at 32K tokens in a layer of Qwen2.5-7B, LRSA beside vanilla."""
    tokens = settings.size(32768, 128)
    mode = LRSA(lag_size=tokens // 32)
    inputs = [z.to("npu", torch.bfloat16) for z in (random(1, 28, tokens, 128), *[random(1, 4, tokens, 128)] * 2)]
    vanilla = _measure(lambda *z: scaled_dot_product_attention(*z, is_causal=True, enable_gqa=True), inputs)
    return {"vanilla": vanilla, "lrsa": _measure(lambda *z: fill.lrsa_attention(*z, mode), inputs)}


def _measure(function, inputs) -> dict:
    _with_gradients(function, inputs)
    torch.npu.synchronize()
    torch.npu.reset_peak_memory_stats()
    before, start = torch.npu.memory_allocated(), perf_counter()
    _with_gradients(function, inputs)
    torch.npu.synchronize()
    gib = (torch.npu.max_memory_allocated() - before) / 2**30
    return {"milliseconds": round((perf_counter() - start) * 1e3, 2), "peak_gib": round(gib, 3)}


def fused_layers(settings: Settings) -> dict:
    """RMSNorm, SwiGLU and rotary embedding, outputs and gradients."""
    import torch_npu

    def rms_norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def swiglu(x):
        gate, up = x.chunk(2, dim=-1)
        return silu(gate) * up

    def rotary(x, cos, sin):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    x, angles = (
        random(2, 4, settings.size(500, 20), 64),
        [random(2, 1, settings.size(500, 20), 64, seed=s) for s in (1, 2)],
    )
    errors = {}
    for plain, fused, inputs in (
        (rms_norm, lambda *z: torch_npu.npu_rms_norm(*z, 1e-6)[0], [x, random(64, seed=3)]),
        (swiglu, torch_npu.npu_swiglu, [x]),
        (rotary, torch_npu.npu_rotary_mul, [x, *angles]),
    ):
        expected = _with_gradients(plain, inputs)
        got = _with_gradients(fused, [z.to("npu", torch.bfloat16) for z in inputs])
        name = plain.__name__
        errors[name] = max(error_of(name, a, b, _BF16) for a, b in zip(got, expected, strict=True))
    return errors


def optimizer(settings: Settings) -> dict:
    """Fused AdamW and clipping by norm, against the plain ones on the CPU."""
    results = []
    for device, fused in (("cpu", False), ("npu", True)):
        weights = [random(64, 64, seed=s).to(device).requires_grad_() for s in range(3)]
        adam = torch.optim.AdamW(weights, lr=1e-2, fused=fused)
        for step in range(5):
            for s, weight in enumerate(weights):
                weight.grad = random(64, 64, seed=10 * step + s + 3).to(device)
            norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
        results.append((norm.detach().cpu(), *(z.detach().cpu() for z in weights)))
    return {"error": max(error_of("AdamW", a, b, 1e-4) for a, b in zip(results[1], results[0], strict=True))}


def random_numbers(settings: Settings) -> dict:
    """A saved state of the generator repeats its numbers; another seed does not."""
    torch.manual_seed(1)
    state = torch.npu.get_rng_state()
    first = torch.rand(1000, device="npu")
    torch.npu.set_rng_state(state)
    if not torch.equal(first, torch.rand(1000, device="npu")):
        raise Failed("a restored generator draws other numbers")
    torch.manual_seed(2)
    if torch.equal(first, torch.rand(1000, device="npu")):
        raise Failed("torch.manual_seed does not seed the NPU")
    return {"mean": first.mean().item()}
