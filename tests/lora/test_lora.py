"""LoRA in `lrsa fit`: what is trained, stored and resumed."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrsa_lightning.attention import Vanilla
from lrsa_lightning.cli import main
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained.decoder import load_config, load_model
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
    (optimizer,) = checkpoint(4)["optimizer_states"]
    assert len(optimizer["state"]) == sum(len(group["params"]) for group in optimizer["param_groups"]) == len(state)
    assert losses()[4] < losses()[1]


@pytest.mark.parametrize("dropout", ["0.0", "0.5"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(adapters, dropout):
    adapters |= {"model.lora.dropout": dropout, "model.lora.modules_to_save": "[norm]"}
    main(command(adapters))
    main(command({**adapters, "run_name": "y", "ckpt_path": "runs/x/checkpoints/step=2.ckpt"}))
    whole, resumed = checkpoint(4), checkpoint(4, "y")
    assert same(whole["state_dict"], resumed["state_dict"])
    assert same(whole["optimizer_states"], resumed["optimizer_states"])
    assert losses("y") == {step: loss for step, loss in losses().items() if step > 2}


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
    """Under full attention: a loaded folder has its mode installed."""
    tokens = torch.arange(1, 90)[None]
    Vanilla().install(model.get_base_model() if isinstance(model, PeftModel) else model)
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
        AutoModelForCausalLM.from_pretrained("merged", attn_implementation="sdpa"),
        PeftModel.from_pretrained(base_model, "adapter"),
        load_model(load_config("adapter", None), "adapter"),
    ):
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    small = [trained.load(torch.bfloat16), load_model(load_config("adapter", None), "adapter", torch.bfloat16)]
    for model in small:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.isfinite(logits(model)).all()
    targets = json.loads(Path("adapter/adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)
    assert {*Path("adapter").glob("*.safetensors")} == {Path("adapter/adapter_model.safetensors")}
    for folder in ("merged", "adapter"):
        source = ModelSource(folder)
        assert source.attention.rule() == trained.attention.rule()
        assert source.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


@pytest.mark.parametrize("strategy", ["auto", "sp_fsdp2"])
def test_what_is_frozen_has_no_masters(adapters, monkeypatch, strategy):
    """bf16-master: the base is in bfloat16, adapters and their states are float32."""
    kept = {}

    def look(trainer, module) -> None:
        kept["dtypes"] = {(p.requires_grad, p.dtype) for p in module.parameters()}
        kept["masters"] = getattr(trainer.precision_plugin, "bytes_of_copies", None)

    monkeypatch.setattr("lrsa_lightning.module.LongContextModule.on_train_end", lambda self: look(self.trainer, self))
    settings = {"trainer.precision": "bf16-master", "trainer.strategy": strategy, "trainer.devices": "1"}
    settings |= {"model.lora.use_dora": "true"}
    adapters |= {"model.lora.modules_to_save": "[norm]", "trainer.max_steps": "2"}
    main(command(adapters | settings))
    assert kept["dtypes"] == {(True, torch.float32), (False, torch.bfloat16)}
    if strategy == "auto":
        assert kept["masters"] == 0  # they exist
    main(command({**adapters, "run_name": "float32"}))
    assert losses()[1] == pytest.approx(losses("float32")[1], rel=0.02)
    assert losses()[2] < losses()[1]


@pytest.mark.parametrize("recompute", ["selective", "attention", "full", "offload"])
def test_recomputation_changes_nothing(adapters, recompute):
    """The adapters' inputs come from a frozen embedding. Draws of dropout repeat in the backward."""
    adapters |= {"model.lora.dropout": "0.3", "model.recompute": "none", "trainer.max_steps": "2"}
    main(command(adapters))
    main(command({**adapters, "run_name": "y", "model.recompute": recompute}))
    assert losses("y") == pytest.approx(losses(), rel=1e-6)


@pytest.mark.parametrize("name", ["long_context", "all_linear"])
def test_settings_come_from_a_file(adapters, name):
    file = CONFIG_DIR / "lora" / f"{name}.yaml"
    kept = {key: value for key, value in adapters.items() if not key.startswith("model.lora")}
    main(command({**kept, "model.lora": str(file), "model.lora.dropout": "0.25", "trainer.max_steps": "1"}))
    given = yaml.safe_load(file.read_text())
    saved = yaml.safe_load(Path("runs/x/config.yaml").read_text())["model"]["lora"]
    assert saved.items() >= {**given, "dropout": 0.25}.items()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.lora.target_modules": "[q_porj]"}, "model.lora.target_modules names q_porj"),
        ({"model.lora.target_modules": "[q_porj]"}, "did you mean q_proj?"),
        ({"model.lora.target_modules": "[q_proj, x]"}, "it has act_fn, down_proj, "),
        ({"model.lora.target_modules": ".*nothing"}, "model.lora: Target modules .*nothing not found"),
        ({"model.lora.target_modules": "[norm]"}, "model.lora: Target module Qwen2RMSNorm((32,), eps=1e-06) is not"),
        ({"model.lora.modules_to_save": "[lm_haed]"}, "model.lora.modules_to_save names lm_haed"),
        ({"model.lora.layers_to_transform": "[0]"}, "model.lora: `layers_to_transform` cannot be used when"),
        ({"model.lora.r": "0"}, "r is 0, but must be a whole number of at least 1"),
        ({"model.lora.dropout": "1"}, "dropout is 1, but must be a number of at least 0 and below 1"),
        ({"model.lora": "none.yaml"}, "none.yaml (--model.lora) does not exist: expected settings of LoRA, as configs"),
        ({"model.name_or_path": "null", "model.from_config": "{}"}, "give model.name_or_path, or leave model.lora out"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(adapters, capsys, settings, said):
    """Before any weight or data is read."""
    assert said in refusal(capsys, command({**adapters, **settings}))
    assert not Path("runs/x/checkpoints").exists()


def test_a_checkpoint_with_other_adapters_is_refused(adapters, capsys):
    """`lrsa validate` does not compare configurations."""
    main(command({**adapters, "trainer.max_steps": "1"}))
    options = {**adapters, "model.lora.target_modules": "[q_proj]", "ckpt_path": "runs/x/checkpoints/step=1.ckpt"}
    said = refusal(capsys, command(options, "validate"))
    assert "does not hold the adapters of this model: it has model.model.layers.0.mlp.down_proj.lora_A" in said
    trained = RunCheckpoint(Path("runs/x/checkpoints/step=1.ckpt"))
    trained.run["model"]["lora"]["target_modules"] = ["q_proj"]
    with pytest.raises(InputError, match=r"step=1\.ckpt does not hold the adapters"):
        trained.load()
