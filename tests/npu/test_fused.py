"""Each fused layer against transformers' own on the CPU, in loss and gradients."""

import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from lrsa_lightning.fused import fuse
from tests.conftest import make_model

pytestmark = pytest.mark.npu
OPERATORS = ("npu_rms_norm", "npu_swiglu", "npu_rotary_mul")


@pytest.fixture
def called(monkeypatch) -> set[str]:
    import torch_npu

    names: set[str] = set()
    for name in OPERATORS:
        genuine = getattr(torch_npu, name)
        # The operators of a device are looked up once: they must find these.
        monkeypatch.setattr(torch_npu, name, lambda *a, n=name, f=genuine, **k: names.add(n) or f(*a, **k))
    rotary = modeling_qwen2.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", getattr(rotary, "plain", rotary))
    return names


def loss_and_gradients(model, device: str) -> list[torch.Tensor]:
    ids = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(0)).to(device)
    loss = model.to(device)(ids, labels=ids).loss
    loss.backward()
    return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


@pytest.mark.parametrize("wanted", ["auto", True, False])
def test_all_operators_or_none(called, wanted):
    expected = loss_and_gradients(make_model(), "cpu")
    model = make_model()
    fuse(model, wanted, "npu")
    for got, wanted_gradient in zip(loss_and_gradients(model, "npu"), expected, strict=True):
        torch.testing.assert_close(got, wanted_gradient, rtol=1e-4, atol=1e-5)
    assert called == (set(OPERATORS) if wanted else set())


def test_mixed_precision(called):
    """The operators take one dtype, where autocast mixes bf16 queries with float32 angles and weights."""
    expected = loss_and_gradients(make_model(), "cpu")[0]
    model = make_model()
    fuse(model, "auto", "npu")
    with torch.autocast("npu", torch.bfloat16):
        loss = loss_and_gradients(model, "npu")[0]
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


def test_a_fused_model_computes_plainly_on_the_cpu(called):
    model = make_model()
    fuse(model, "auto", "npu")
    assert loss_and_gradients(model, "cpu")[0] == loss_and_gradients(make_model(), "cpu")[0]
    assert not called


def test_rotary_promotes_as_the_plain_one(called):
    plain = modeling_qwen2.apply_rotary_pos_emb
    fuse(make_model(), "auto", "npu")
    q, angles = torch.randn(1, 2, 5, 8).bfloat16(), torch.randn(1, 5, 8)
    expected, _ = plain(q, q, angles, angles)
    on_npu = [z.to("npu") for z in (q, q, angles, angles)]
    got, _ = modeling_qwen2.apply_rotary_pos_emb(*on_npu)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-6)  # float32, as the angles are
