"""LoRA in `lrsa fit`: what is trained, stored and resumed."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrsa_lightning.cli import main
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.pretrained import load_config, load_model
from lrsa_lightning.trained_model import RunCheckpoint
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, command, losses, refusal, same

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def base(tmp_path, tokenizer) -> Path:
    return save_base(tmp_path / "base", tokenizer)


@pytest.fixture
def adapters(arguments, base) -> dict[str, str]:
    """The options of a run of four steps with a checkpoint of each."""
    return lora_run(arguments, base) | {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "4"}


def checkpoint(step: int, run: str = "x") -> dict:
    return torch.load(f"runs/{run}/checkpoints/step={step}.ckpt", weights_only=True)


def test_adapters_alone_are_trained_and_stored(adapters):
    main(command(adapters))
    state = checkpoint(4)["state_dict"]
    assert {name.split(".")[-3] for name in state} == {"lora_A", "lora_B"}
    assert len(state) == 2 * 2 * 7  # layers x (A, B) x linear layers
    assert all(weight.abs().max() > 0 for weight in state.values())
    assert len(checkpoint(4)["optimizer_states"][0]["state"]) == len(state)
    assert losses()[3] < losses()[0]


@pytest.mark.parametrize("dropout", ["0.0", "0.5"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(adapters, dropout):
    adapters |= {"model.lora.dropout": dropout, "model.lora.modules_to_save": "[norm]"}
    main(command(adapters))
    main(command({**adapters, "run_name": "y", "ckpt_path": "runs/x/checkpoints/step=2.ckpt"}))
    whole, resumed = checkpoint(4), checkpoint(4, "y")
    assert same(whole["state_dict"], resumed["state_dict"])
    assert same(whole["optimizer_states"], resumed["optimizer_states"])
    assert losses("y") == {step: loss for step, loss in losses().items() if step > 1}


def test_a_resume_with_other_adapters_is_refused(adapters, capsys):
    main(command({**adapters, "trainer.max_steps": "1"}))
    said = refusal(capsys, command({**adapters, "model.lora.r": "8", "ckpt_path": "last"}))
    assert "model.lora.r: 4 -> 8" in said


def test_a_run_is_evaluated_with_its_adapters_merged(adapters):
    """By hand: W + B A alpha / r."""
    main(command(adapters))
    trained, name = RunCheckpoint(Path("runs/x/checkpoints/last.ckpt")), "model.layers.1.self_attn.q_proj"
    model, state = trained.load(), checkpoint(4)["state_dict"]
    a, b = (state[f"model.{name}.lora_{part}.default.weight"] for part in "AB")
    before = AutoModelForCausalLM.from_pretrained("base").get_submodule(name).weight
    torch.testing.assert_close(model.get_submodule(name).weight, before + b @ a * 8 / 4)
    assert type(model.get_submodule(name)) is torch.nn.Linear


def logits(model) -> torch.Tensor:
    tokens = torch.arange(1, 90)[None]
    return model.eval()(tokens, use_cache=False).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", ["[]", "[norm, embed_tokens]"])
def test_exports_are_the_trained_model(adapters, base, tokenizer, tied, saved):
    """peft, transformers and this package load them alike."""
    save_base(base, tokenizer, tie_word_embeddings=tied)
    main(command(adapters | {"model.lora.use_dora": "true", "model.lora.modules_to_save": saved}))
    trained = RunCheckpoint(Path("runs/x/checkpoints/last.ckpt"))
    expected = logits(trained.load())
    main(["export", "runs/x", "--output", "merged"])
    main(["export", "runs/x", "--output", "adapter", "--adapter"])
    base_model = AutoModelForCausalLM.from_pretrained(base)
    assert (logits(base_model) - expected).abs().max() > 0.1
    for model in (
        AutoModelForCausalLM.from_pretrained("merged"),
        PeftModel.from_pretrained(base_model, "adapter"),
        load_model(load_config("adapter", None), "adapter"),
    ):
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    assert {*Path("adapter").glob("*.safetensors")} == {Path("adapter/adapter_model.safetensors")}
    for folder in ("merged", "adapter"):
        source = ModelSource(folder)
        assert source.attention.rule() == trained.attention.rule()
        assert source.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
