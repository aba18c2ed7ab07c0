"""Each fused layer against transformers' own on the CPU, in loss and gradients."""

import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from lrsa_lightning.npu.fused import fuse
from tests.conftest import make_model

pytestmark = pytest.mark.npu
SWITCHES = {"rms_norm": "npu_rms_norm", "swiglu": "npu_swiglu", "rotary": "npu_rotary_mul"}


@pytest.fixture
def called(monkeypatch) -> set[str]:
    import torch_npu

    names: set[str] = set()
    for name in SWITCHES.values():
        genuine = getattr(torch_npu, name)
        monkeypatch.setattr(torch_npu, name, lambda *a, n=name, f=genuine, **k: names.add(n) or f(*a, **k))
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", modeling_qwen2.apply_rotary_pos_emb)
    return names


def loss_and_gradients(model, device: str) -> list[torch.Tensor]:
    ids = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(0)).to(device)
    loss = model.to(device)(ids, labels=ids).loss
    loss.backward()
    return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


@pytest.mark.parametrize("on", [["rms_norm"], ["swiglu"], ["rotary"], list(SWITCHES), []], ids=str)
def test_switches(called, on):
    expected = loss_and_gradients(make_model(), "cpu")
    model = make_model()
    fuse(model, **{name: name in on for name in SWITCHES})
    for got, wanted in zip(loss_and_gradients(model, "npu"), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert called == {SWITCHES[name] for name in on}


def test_mixed_precision(called):
    """The operators take one dtype, where autocast mixes bf16 queries with float32 angles and weights."""
    expected = loss_and_gradients(make_model(), "cpu")[0]
    model = make_model()
    fuse(model)
    with torch.autocast("npu", torch.bfloat16):
        loss = loss_and_gradients(model, "npu")[0]
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


def test_a_fused_model_still_runs_on_the_cpu_without_rotary(called):
    model = make_model()
    fuse(model, rms_norm=False, swiglu=False)
    assert loss_and_gradients(model, "cpu")[0] == loss_and_gradients(make_model(), "cpu")[0]
    assert not called


def test_rotary_promotes_as_the_plain_one(called):
    plain = modeling_qwen2.apply_rotary_pos_emb
    fuse(make_model(), rms_norm=False, swiglu=False)
    q, angles = torch.randn(1, 2, 5, 8).bfloat16(), torch.randn(1, 5, 8)
    expected, _ = plain(q, q, angles, angles)
    on_npu = [z.to("npu") for z in (q, q, angles, angles)]
    got, _ = modeling_qwen2.apply_rotary_pos_emb(*on_npu)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-6)  # float32, as the angles are
