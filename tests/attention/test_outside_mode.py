"""The recipe of CONTRIBUTING.md, followed from outside the package: a mode of a few lines."""

import pytest
import torch
import yaml
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from lrsa_lightning import AttentionMode, Vanilla, generate
from lrsa_lightning.commands.training import LRSACLI
from tests.conftest import TINY_MODEL, make_model


class Tempered(AttentionMode):
    """Full causal attention whose logits are scaled once more."""

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def registry_key(self) -> str:
        return f"Tempered({self.temperature})"

    def make_cache(self, config, lengths=None):
        return DynamicCache(config=config)

    def install(self, model) -> None:
        AttentionInterface.register(self.registry_key(), self.attention)
        AttentionMaskInterface.register(self.registry_key(), AttentionMaskInterface()["sdpa"])
        super().install(model)

    def attention(self, module, query, key, value, attention_mask, scaling=None, **_):
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[2] > 1,
            scale=scaling * self.temperature,
            enable_gqa=True,
        )
        return out.transpose(1, 2).contiguous(), None


IDS = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_swaps_like_any_other():
    model = make_model()
    plain = model(IDS).logits
    Tempered(1.0).install(model)
    torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=1e-4)
    Tempered(3.0).install(model)
    assert (model(IDS).logits - plain).abs().max() > 1e-2
    Vanilla().install(model)
    assert torch.equal(model(IDS).logits, plain)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_generates_with_rows_of_unequal_length(temperature):
    model, mode = make_model(), Tempered(temperature)
    together = generate(model, IDS, mode, 10, lengths=[7, 40, 23])
    for row, length in enumerate([7, 40, 23]):
        assert torch.equal(together[row], generate(model, IDS[row : row + 1, :length], mode, 10)[0])


def test_yaml_can_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mode = {"class_path": f"{__name__}.Tempered", "init_args": {"temperature": 0.5}}
    (tmp_path / "mode.yaml").write_text(yaml.safe_dump(mode))
    config = yaml.safe_dump({**TINY_MODEL, "vocab_size": 50}, default_flow_style=True)
    arguments = [f"--model.from_config={config}", "--model.attention=mode.yaml", "--trainer.accelerator=cpu"]
    cli = LRSACLI([*arguments, "--trainer.logger=false", "--trainer.callbacks=[]"], run=False)
    assert cli.model.attention.temperature == 0.5
