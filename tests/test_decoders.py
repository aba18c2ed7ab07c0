"""LoRA and export in the usual decoders: what transformers loads computes what the run has trained."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lrsa_lightning.attention.installed import installed_mode
from lrsa_lightning.cli import main
from lrsa_lightning.trained_model import RunCheckpoint
from tests.conftest import TINY_MODEL
from tests.decoders import DECODERS
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]
IDS = torch.randint(0, 97, (2, 90), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS, use_cache=False).logits


def loaded(folder: str, trained: RunCheckpoint):
    """The folder's model as transformers loads it, whose attention is the run's."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert json.loads(Path(folder, "config.json").read_text())["lrsa"] == trained.attention.settings()
    assert installed_mode(model.config).rule() == trained.attention.rule()
    return model


def made(start, trained: RunCheckpoint, **options):
    """A model with the weights in the checkpoint."""
    start.load_state_dict(trained.weights(), **options)
    trained.attention.install(start)
    return start


@pytest.mark.parametrize("name", DECODERS)
def test_exports_of_adapters_are_the_adapted_model(arguments, tokenizer, tmp_path, name):
    base = save_base(tmp_path / "base", tokenizer, model_type=name, **DECODERS[name])
    main(command(lora_run(arguments, base) | {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "2"}))
    trained = RunCheckpoint(Path("runs/x/checkpoints/step=2.ckpt"))
    adapted = trained.starting_model.load_adapted(trained.model_config).get_base_model()
    trained.attention.install(adapted)
    before = logits(adapted)
    expected = logits(made(adapted, trained, strict=False))
    assert (expected - before).abs().max() > 0.1
    main(["export", "runs/x", "--output", "merged"])
    main(["export", "runs/x", "--output", "adapter", "--adapter"])
    peft_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapter")
    trained.attention.install(peft_model.get_base_model())
    for model in (loaded("merged", trained), peft_model):
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_an_export_is_the_trained_model(arguments, tokenizer, name):
    keys = {**TINY_MODEL, "vocab_size": len(tokenizer), "model_type": name, **DECODERS[name]}
    options = {"model.from_config": json.dumps(keys), "trainer.callbacks": EACH_STEP, "trainer.max_steps": "2"}
    main(command(arguments | options))
    trained = RunCheckpoint(Path("runs/x/checkpoints/step=2.ckpt"))
    expected = logits(made(AutoModelForCausalLM.from_config(trained.model_config), trained))
    main(["export", "runs/x", "--output", "exported"])
    assert torch.equal(logits(loaded("exported", trained)), expected)
