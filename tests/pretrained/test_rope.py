"""RoPE keys, given in YAML or read from a config.json: understood, or refused by name before anything costs time."""

import copy
import json
import math

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.pretrained.decoder import check_length, load_config, load_model

# As Qwen publishes it, in small.
PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 97,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
WRONG = [
    ({"rope_tpye": "yarn", "factor": 2.0}, "'rope_tpye': did you mean rope_type"),
    ({"rope_type": "yarm", "factor": 2.0}, "unknown rope_type 'yarm'"),
    ({"rope_type": "yarn"}, "needs factor"),
    ({"rope_type": "yarn", "factor": None}, "needs factor"),
    ({"rope_type": "llama3", "factor": 2.0}, "needs high_freq_factor, low_freq_factor"),
    ({"rope_type": "yarn", "factor": 0.5}, "factor is 0.5"),
    ({"rope_type": "linear", "factor": -2}, "factor is -2"),
    ({"rope_type": "linear", "factor": "4"}, "factor is '4'"),
    ({"rope_type": "linear", "factor": math.nan}, "factor is nan"),
    ({"factor": 2.0}, "factor means nothing for rope_type 'default'"),
    ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast means nothing for rope_type 'linear'"),
    ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, "contradict"),
    ({"rope_theta": 0}, "rope_theta is 0"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
]


def folder_with(tmp_path, keys) -> str:
    (tmp_path / "config.json").write_text(json.dumps(keys))
    return str(tmp_path)


@pytest.mark.parametrize("scaling", [{}, {"rope_scaling": YARN}, {"rope_scaling": None}], ids=str)
def test_rope_keys_mean_the_same_in_yaml_and_in_a_folder(tmp_path, scaling):
    keys = {**PUBLISHED, **scaling}
    given = load_config(None, keys)
    read = load_config(folder_with(tmp_path, keys), None)
    assert given.rope_parameters["rope_theta"] == 1000000.0
    assert given.to_dict() | {"_name_or_path": ""} == read.to_dict() | {"_name_or_path": ""}
    LRSA().check(given)
    load_model(given, None, torch.float32)


def test_the_given_keys_are_not_modified():
    """They are saved with the run, and compared when it resumes."""
    keys = {**PUBLISHED, "rope_scaling": dict(YARN)}
    before = copy.deepcopy(keys)
    load_config(None, keys, {"factor": 2.0})
    assert keys == before


@pytest.mark.parametrize(("rope", "message"), WRONG, ids=str)
@pytest.mark.parametrize("place", ["model.rope_parameters", "rope_parameters", "rope_scaling"])
def test_wrong_keys_are_refused_by_name(rope, message, place):
    keys = {key: value for key, value in PUBLISHED.items() if key != "rope_theta"}
    with pytest.raises(InputError, match=message) as caught:
        load_config(None, keys if "." in place else {**keys, place: dict(rope)}, rope if "." in place else None)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_tpye": "yarn", "factor": 2.0}, "rope_tpye"),
        ({"rope_type": "yarm", "factor": 2.0}, "yarm"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor is 0.5"),
    ],
    ids=str,
)
def test_wrong_keys_of_a_folder_are_refused_by_name(tmp_path, rope, message):
    with pytest.raises(InputError, match=message):
        load_config(folder_with(tmp_path, {**PUBLISHED, "rope_scaling": rope}), None)


def test_keys_that_only_one_model_knows_pass(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0, "finetuned": True}
    load_config(folder_with(tmp_path, {**PUBLISHED, "rope_scaling": rope}), None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "rope_theta is 1000000.0, but 10000.0 in"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": YARN}, "contradict each other"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_tehta": 1e6}, "rope_tehta not in Qwen2Config: did you mean rope_theta"),
        ({"use_mrope": True}, "use_mrope"),
        ({"model_type": "qwen22"}, "did you mean qwen2"),
    ],
    ids=str,
)
def test_contradictions_and_misspelt_keys_are_found_when_the_module_is_made(keys, message):
    with pytest.raises(InputError, match=message) as caught:
        LongContextModule(Vanilla(), from_config={**PUBLISHED, **keys})
    assert "\n" not in str(caught.value)


def test_an_override_replaces_all_of_a_scaling():
    config = load_config(None, {**PUBLISHED, "rope_scaling": YARN}, {"rope_type": "linear", "factor": 2.0})
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0}
    config = load_config(None, {**PUBLISHED, "rope_scaling": YARN}, {"factor": 2.0})
    assert config.rope_parameters["factor"] == 2.0
    assert config.rope_parameters["original_max_position_embeddings"] == 128


def test_yarn_scales_from_the_positions_the_model_has():
    config = load_config(None, PUBLISHED, {"rope_type": "yarn", "factor": 4.0})
    assert config.rope_parameters["original_max_position_embeddings"] == 512
    check_length(config, 2048)
    with pytest.raises(InputError, match="2048 positions"):
        check_length(config, 2049)


def test_models_without_one_rope_take_no_override():
    with pytest.raises(InputError, match="no RoPE"):
        load_config(None, {"model_type": "gpt2"}, {"rope_type": "linear", "factor": 2.0})
    with pytest.raises(InputError, match="each kind of layer"):
        load_config(None, {"model_type": "gemma3_text"}, {"rope_type": "linear", "factor": 2.0})


def test_the_length_of_a_nested_configuration_is_that_of_its_text():
    config = load_config(None, {"model_type": "gemma3", "text_config": {"max_position_embeddings": 300}})
    check_length(config, 300)
    with pytest.raises(InputError, match="300 positions"):
        check_length(config, 301)
