"""Which layers take fused operators, and that they compute what the layers did."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from lrsa_lightning.errors import InputError
from lrsa_lightning.fused import layers, operators
from lrsa_lightning.fused.layers import fuse
from tests.conftest import make_model


@pytest.fixture
def recorded(monkeypatch) -> set[str]:
    """Fused operators for the CPU that note their use and compute plainly."""
    used: set[str] = set()

    def note(name, function):
        return lambda *a, **k: used.add(name) or function(*a, **k)

    def add_norm(x, residual, weight, eps):
        return operators.plain_rms_norm(x + residual, weight, eps), x + residual

    def mlp(x, gate, up, down):
        return nn.functional.linear(operators.plain_swiglu(x @ gate.T, x @ up.T), down)

    fakes = operators.Operators(
        note("rms_norm", operators.plain_rms_norm),
        note("swiglu", operators.plain_swiglu),
        note("rotary", operators.plain_rotary),
        note("add_rms_norm", add_norm),
        note("mlp", mlp),
    )
    monkeypatch.setattr(layers, "operators_of", lambda device_type: fakes)
    rotary = modeling_qwen2.apply_rotary_pos_emb  # another test may have replaced it
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", getattr(rotary, "plain", rotary))
    return used


def loss_and_gradients(model) -> list[torch.Tensor]:
    ids = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(0))
    loss = model(ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_every_operator_is_used_and_computes_the_same(recorded):
    expected = loss_and_gradients(make_model())
    model = make_model()
    fuse(model, "auto", "cpu")
    for got, wanted in zip(loss_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert recorded == {"rms_norm", "rotary", "add_rms_norm", "mlp"}


def test_a_module_that_is_more_than_its_weight_is_called(recorded):
    """As an adapter is: the MLP's fused form would leave it out."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = make_model()
    fuse(model, "auto", "cpu")
    mlp = model.get_decoder().layers[0].mlp
    x = torch.randn(1, 3, 32)
    plain = mlp(x)
    mlp.down_proj.__class__ = Doubled
    assert torch.allclose(mlp(x), 2 * plain)
    assert "swiglu" in recorded


def test_false_takes_no_fused_operator(recorded):
    model = make_model()
    fuse(model, False, "cpu")
    loss_and_gradients(model)
    assert not recorded


def test_usual_formulas_are_recognised_and_others_are_not():
    assert layers._is_rms_norm(Qwen2RMSNorm(8))
    assert not layers._is_rms_norm(GemmaRMSNorm(8))  # it adds one to its weight

    class Twice(Qwen2RMSNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    class Swapped(Qwen2MLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    assert not layers._is_rms_norm(Twice(8))
    mlp = make_model().get_decoder().layers[0].mlp
    assert layers._is_swiglu(mlp)
    mlp.__class__ = Swapped
    assert not layers._is_swiglu(mlp)
    layer = make_model().get_decoder().layers[0]
    assert layers._is_layer(layer)

    class Scaled(type(layer)):
        def forward(self, hidden_states, **kwargs):
            return 0.5 * super().forward(hidden_states, **kwargs)

    layer.__class__ = Scaled
    assert not layers._is_layer(layer)


def test_another_rotary_embedding_stays():
    def halved(q, k, cos, sin, unsqueeze_dim=1):
        return q * 0.5, k

    module = type("Module", (), {"apply_rotary_pos_emb": staticmethod(halved)})
    assert not layers._set_rotary(module)
    assert module.apply_rotary_pos_emb is halved


def test_fused_layers_that_do_not_exist_are_refused_when_demanded():
    with pytest.raises(InputError, match=r"model.fused_layers true: there are none for cpu; take auto"):
        fuse(make_model(), True, "cpu")
    fuse(make_model(), "auto", "cpu")
