"""An adapter folder in the place of a model: trained on, evaluated, and refused where it does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from lrsa_lightning.cli import main
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.pretrained.decoder import load_config, load_model
from lrsa_lightning.trained_model import RunCheckpoint
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, callback, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def base(tmp_path, tokenizer) -> Path:
    return save_base(tmp_path / "base", tokenizer)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """As peft writes it, without a tokenizer."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def on_adapter(arguments, adapter) -> dict[str, str]:
    """The options of a run that goes on with it."""
    kept = {key: value for key, value in arguments.items() if key not in ("model.from_config", "data.tokenizer")}
    return {**kept, "model.name_or_path": str(adapter), "trainer.callbacks": EACH_STEP, "trainer.max_steps": "2"}


def test_training_goes_on_with_the_adapter(on_adapter, adapter):
    main(command(on_adapter))
    trained = RunCheckpoint(Path("runs/x/checkpoints/step=2.ckpt"))
    assert {name.split(".")[-4] for name in trained.weights()} == {"q_proj", "up_proj"}
    name = "model.layers.0.mlp.up_proj.weight"
    before = load_model(load_config(str(adapter), None), str(adapter)).get_parameter(name)
    base = AutoModelForCausalLM.from_pretrained("base").get_parameter(name)
    after = trained.load().get_parameter(name)
    assert 0 < (after - before).abs().max() < 0.2 * (before - base).abs().max()
    assert losses()[2] < losses()[1]


def test_the_settings_of_a_folder_and_of_the_run_exclude_each_other(on_adapter, capsys):
    assert "leave model.lora out" in refusal(capsys, command({**on_adapter, "model.lora.r": "8"}))


def test_an_exported_adapter_goes_on_with_its_rule_and_rope(arguments, base, on_adapter):
    rope = {"model.rope_parameters": '{"rope_type": "linear", "factor": 2.0}'}
    first = lora_run(arguments, base) | {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "2", **rope}
    main(command(first))
    main(["export", "runs/x", "--output", "exported", "--adapter"])
    config = load_config("exported", None)
    assert config.rope_parameters.items() >= {"rope_type": "linear", "factor": 2.0}.items()
    assert ModelSource("exported").attention.lag_size == 16
    main(command({**on_adapter, "model.name_or_path": "exported", "run_name": "y"}))
    main(["export", "runs/y", "--output", "again", "--adapter"])
    assert AdapterFolder.of("again").changes == AdapterFolder.of("exported").changes
    assert AdapterFolder.of("again").base == str(base)
    main(command({**on_adapter, "model.name_or_path": "exported", "run_name": "v"}, "validate"))


def change(adapter: Path, **values) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "names no base"),
        ("/no/such/base", "the base of the adapter {adapter}, /no/such/base, does not exist"),
        (
            "no/such-base",
            "data.tokenizer is that of the base of the adapter {adapter}: 'no/such-base' cannot be loaded",
        ),
        ("{adapter}", "is an adapter itself"),
    ],
)
def test_a_base_that_cannot_be_found_is_named(on_adapter, adapter, capsys, value, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(adapter, base_model_name_or_path=value and value.format(adapter=adapter))
    error = refusal(capsys, command(on_adapter))
    assert said.format(adapter=adapter) in error
    assert "base_model_name_or_path" in error or "hub id that this machine can reach" in error


def test_an_adapter_without_or_with_other_weights_is_refused(on_adapter, adapter, capsys, base, tokenizer):
    save_base(base, tokenizer, num_hidden_layers=1)
    assert "has base_model.model.model.layers.1" in refusal(capsys, command(on_adapter))
    (adapter / "adapter_model.safetensors").unlink()
    assert "lacks adapter_model.safetensors" in refusal(capsys, command(on_adapter))


def test_other_kinds_of_adapters_are_refused(on_adapter, adapter, base, capsys):
    shutil.rmtree(adapter)
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(adapter)
    assert "only LORA" in refusal(capsys, command(on_adapter))


def test_a_file_that_is_not_ours_is_refused(adapter):
    (adapter / "base_config.json").write_text('{"lag": 3}')
    with pytest.raises(InputError, match=r"base_config\.json is .*lag.*: give it lrsa and rope_parameters"):
        load_config(str(adapter), None)


def test_ruler_scores_the_adapted_model_in_training_and_after(on_adapter, capsys):
    sizes = {"tasks": ["niah_single_1"], "lengths": [512], "num_samples": 2, "budgets": [1.0, 0.5], "every_n_steps": 2}
    ruler = [callback("Checkpoints"), callback("RulerEval", generation="always", **sizes)]
    main(command({**on_adapter, "trainer.callbacks": json.dumps(ruler)}))
    first, last = (path.read_text() for path in sorted(Path("runs/x/ruler").glob("step-*.jsonl")))
    nll = [json.loads(text.splitlines()[0])["nll"] for text in (first, last)]
    assert nll[0] != nll[1]
    main(["export", "runs/x", "--output", "exported", "--adapter"])
    answers = []
    for source in ("runs/x", "exported"):
        capsys.readouterr()
        main(["generate", source, "Which colour has house 3?", "--max_new_tokens", "4", "--template", "base"])
        answers.append(capsys.readouterr().out)
    main(["export", "exported", "--output", "merged"])
    capsys.readouterr()
    main(["generate", "merged", "Which colour has house 3?", "--max_new_tokens", "4", "--template", "base"])
    assert answers[0] == answers[1] == capsys.readouterr().out != ""
    assert ModelSource("merged").attention.rule() == ModelSource("exported").attention.rule()
    assert ModelSource("merged").template == ModelSource("exported").template == ModelSource("runs/x").template
    ends = [GenerationConfig.from_pretrained(folder).eos_token_id for folder in ("exported", "merged")]
    assert ends[0] == ends[1] is not None


def test_the_tokenizer_of_a_base_may_be_given_in_its_place(on_adapter, adapter, capsys, tokenizer_dir, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(adapter, base_model_name_or_path="no/such-base")
    error = refusal(capsys, command({**on_adapter, "data.tokenizer": str(tokenizer_dir)}))
    assert f"'no/such-base', the base of the adapter {adapter}, cannot be loaded" in error


def test_an_adapter_of_the_hub_comes_from_its_cache(adapter, base, tmp_path, monkeypatch):
    """No test contacts the hub: this is what an earlier download left."""
    copied = tmp_path / "hub" / "models--me--adapter" / "snapshots" / "0123"
    shutil.copytree(adapter, copied)
    refs = copied.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    found = AdapterFolder.of("me/adapter")
    assert (found.name, found.path, found.base) == ("me/adapter", copied / "adapter_config.json", str(base))
    name = "model.layers.0.mlp.up_proj.weight"
    model = load_model(load_config("me/adapter", None), "me/adapter")
    expected = load_model(load_config(str(adapter), None), str(adapter))
    assert torch.equal(model.get_parameter(name), expected.get_parameter(name))
