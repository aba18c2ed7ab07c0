"""Versions, torch_npu's fused layers, optimizer and random numbers, against float32 on the CPU."""

import platform
from pathlib import Path

import torch
from torch.nn.functional import rms_norm, silu
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from lrsa_lightning.npu.check.settings import BF16, Failed, Settings, error_of, on_npu, random, with_gradients

_DRIVER = Path("/usr/local/Ascend/driver/version.info")


def versions(settings: Settings) -> dict:
    """Versions of torch, torch_npu and CANN, bfloat16, number of devices, memory."""
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


def fused_layers(settings: Settings) -> dict:
    """RMSNorm, SwiGLU and rotary embedding as in Qwen2, outputs and gradients."""
    import torch_npu

    tokens = settings.size(500, 20)
    x, cos, sin = random(2, 4, tokens, 64), random(2, 1, tokens, 64, seed=1), random(2, 1, tokens, 64, seed=2)
    errors = {}
    for name, plain, fused, inputs in (
        (
            "rms_norm",
            lambda x, weight: rms_norm(x, (64,), weight, 1e-6),
            lambda x, weight: torch_npu.npu_rms_norm(x, weight, 1e-6)[0],
            [x, random(64, seed=3)],
        ),
        ("swiglu", lambda x: silu(x[..., :32]) * x[..., 32:], torch_npu.npu_swiglu, [x]),
        ("rotary", lambda x, cos, sin: x * cos + rotate_half(x) * sin, torch_npu.npu_rotary_mul, [x, cos, sin]),
    ):
        expected = with_gradients(plain, inputs)
        got = with_gradients(fused, on_npu(*inputs))
        errors[name] = max(error_of(name, a, b, BF16) for a, b in zip(got, expected, strict=True))
    return errors


def optimizer(settings: Settings) -> dict:
    """Fused AdamW and clipping by norm, against plain AdamW on the CPU."""
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
    """A saved state of the generator repeats its numbers. Another seed draws others."""
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
