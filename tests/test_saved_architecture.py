"""config.json with a rule names an architecture that no engine knows; one without a rule names transformers' own."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Trainer, TrainingArguments

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.saved_settings import marked
from tests.conftest import TINY_MODEL, make_model

MODE = LRSA(lag_size=8, sink_size=4)
MARKED, STOCK = "LrsaQwen2ForCausalLM", "Qwen2ForCausalLM"


def named(folder: Path) -> str:
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return name


def saved(model, folder: Path) -> str:
    model.save_pretrained(folder)
    return named(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    model = make_model()
    MODE.install(model)
    assert saved(model, tmp_path / "model") == MARKED
    return tmp_path / "model"


def test_the_name_follows_the_rule_that_is_saved(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert saved(model, tmp_path / "again") == MARKED
    model.set_attn_implementation("sdpa")
    assert saved(model, tmp_path / "again") == MARKED  # config.json still names the rule
    Vanilla().install(model)
    assert saved(model, tmp_path / "again") == STOCK
    with MODE.installed(model):
        assert saved(model, tmp_path / "again") == MARKED
    assert saved(model, tmp_path / "again") == STOCK


def test_a_configuration_alone_keeps_the_names_in_memory(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    assert saved(config, tmp_path / "again") == MARKED
    del config.lrsa
    assert saved(config, tmp_path / "again") == STOCK
    assert config.architectures == [MARKED]
    config.architectures = None
    config.lrsa = MODE.settings()
    config.save_pretrained(tmp_path / "none")
    assert "architectures" not in json.loads((tmp_path / "none" / "config.json").read_text())


def test_names_come_back_after_an_error(folder):
    config = AutoConfig.from_pretrained(folder)
    del config.lrsa
    with suppress(KeyError), marked(config):
        assert config.architectures == [STOCK]
        raise KeyError
    assert config.architectures == [MARKED]


def test_merged_adapters_and_the_trainer_keep_it(folder, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    assert saved(model.merge_and_unload(), tmp_path / "merged") == MARKED
    rows = Dataset.from_list([{"input_ids": [*range(40)], "labels": [*range(40)]}])
    options = TrainingArguments(str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), options, train_dataset=rows)
    trainer.train()
    assert named(tmp_path / "run" / "checkpoint-1") == MARKED
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-1").config._attn_implementation == "lrsa"


def test_a_model_of_several_parts_has_it_in_its_own_name(tmp_path):
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    text = {"model_type": "qwen2", "vocab_size": 97, **TINY_MODEL}
    config = AutoConfig.for_model("llava", vision_config=vision, text_config=text, image_token_index=96)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation={"text_config": "lrsa"})
    assert saved(model, tmp_path) == "LrsaLlavaForConditionalGeneration"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.text_config._attn_implementation == "lrsa"


def test_an_engine_that_looks_the_class_up_in_transformers_finds_none(folder):
    """Such as vLLM's and SGLang's back end of transformers, and transformers' own server."""
    assert hasattr(transformers, STOCK)
    assert not hasattr(transformers, MARKED)


def test_transformers_own_server_refuses_the_folder(folder):
    manager = pytest.importorskip("transformers.cli.serving.model_manager").ModelManager(device="cpu")
    with pytest.raises(AttributeError, match=MARKED):
        manager._load_model(f"{folder}@main")
