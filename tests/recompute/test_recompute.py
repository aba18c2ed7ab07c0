"""What the backward computes again changes memory, and not one bit of a gradient."""

import pytest
import torch
from torch import Tensor

from lrsa_lightning import LRSA
from lrsa_lightning.cli import main
from lrsa_lightning.fused import fuse
from lrsa_lightning.recompute import policies as recompute
from lrsa_lightning.recompute.policies import set_policies
from tests.conftest import make_model
from tests.runs import command, losses, metrics, refusal

POLICIES = ("none", "selective", "attention", "full", "offload")
MIXED = ["offload", "full", "attention", "selective", "none"]


def run(model) -> list[Tensor]:
    """Hidden states and all gradients."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 97, (2, 100), generator=generator)
    decoder = model.get_decoder()
    hidden = decoder(input_ids=ids, position_ids=torch.arange(100).expand(2, -1), use_cache=False).last_hidden_state
    hidden.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [hidden.detach(), *gradients]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("fused", ["auto", False])
def test_gradients_are_bit_equal_under_every_policy(model_type, fused):
    model = make_model(model_type, num_hidden_layers=5).train()
    LRSA(lag_size=16, sink_size=4).install(model)
    expected = run(model)
    fuse(model, fused, "cpu")
    for policies in [*([policy] * 5 for policy in POLICIES), MIXED, ["none"] * 5]:
        set_policies(model.get_decoder().layers, policies)
        for got, wanted in zip(run(model), expected, strict=True):
            assert torch.equal(got, wanted), policies


def test_without_gradients_nothing_is_recorded():
    model = make_model()
    fuse(model, "auto", "cpu")
    expected = model(torch.arange(20)[None]).logits
    for policy in POLICIES:
        set_policies(model.get_decoder().layers, [policy] * 2)
        with torch.no_grad():
            assert torch.equal(model(torch.arange(20)[None]).logits, expected)


def test_selective_keeps_neither_norms_nor_the_product(monkeypatch):
    """By what the layer's hooks let autograd keep."""
    kept: list[Tensor] = []
    genuine = recompute._Tape._pack

    def pack(tape, saved: Tensor):
        packed = genuine(tape, saved)
        kept.extend([packed] if isinstance(packed, Tensor) else [])
        return packed

    monkeypatch.setattr(recompute._Tape, "_pack", pack)
    model = make_model().train()
    fuse(model, "auto", "cpu")
    layer = model.get_decoder().layers[0]
    set_policies([layer], ["selective"])
    cheap: list[Tensor] = []
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.register_forward_hook(lambda _, __, out: cheap.append(out))
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: cheap.append(given[0]))
    angles = torch.randn(1, 50, 8), torch.randn(1, 50, 8)
    layer(torch.randn(1, 50, 32, requires_grad=True), position_embeddings=angles, attention_mask=None)
    assert len(cheap) == 3
    assert not {z.data_ptr() for z in cheap} & {z.data_ptr() for z in kept}
    assert {64, 32} <= {z.shape[-1] for z in kept}  # gate and up, residuals


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize("policy", POLICIES)
def test_runs_of_every_policy_have_the_same_losses(arguments, policy):
    main(command(arguments | {"run_name": "plain", "model.recompute": "none"}))
    main(command(arguments | {"model.recompute": policy}))
    assert losses() == losses("plain")


@pytest.mark.usefixtures("in_tmp_path")
def test_the_earlier_name_is_read(arguments, caplog, capsys):
    main(command(arguments | {"model.gradient_checkpointing": "true"}))
    assert "model.gradient_checkpointing is now model.recompute: it is read as full" in caplog.text
    assert metrics()
    both = {"model.gradient_checkpointing": "true", "model.recompute": "selective", "run_name": "y"}
    assert "leave out its earlier name" in refusal(capsys, command(arguments | both))
