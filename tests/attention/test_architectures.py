"""Every architecture of transformers: LRSA is exact in it, or refuses to be installed."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrsa_lightning import LRSA, LagKVCache, Vanilla, generate
from lrsa_lightning.attention.layer_call import check_layer_call
from lrsa_lightning.errors import InputError
from tests.attention import architectures
from tests.attention.architectures import PLAIN, WINDOW, build
from tests.attention.exactness import IDS, SIZES, deviation, hidden, refusal
from tests.conftest import make_model

EXACT = ["qwen2", "llama", "mistral", "gemma", "gemma3_text", "phi3", "gpt_neox", "mixtral", "qwen3_moe", "starcoder2"]
REFUSED = {
    "gemma2": "softcap",
    "gpt_oss": "s_aux",
    "falcon": "AttentionInterface",
    "bloom": "AttentionInterface",
    "bert": "not causal",
    "diffllama": "each call",
    "mamba": "0 calls",
}


@pytest.mark.parametrize("name", EXACT)
def test_it_is_exact(name):
    assert refusal(build(name, **PLAIN)) is None


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    assert REFUSED[name] in refusal(build(name, **PLAIN))


@pytest.mark.parametrize("name", ["qwen2", "mistral", "phi3", "starcoder2", "mixtral", "qwen3_moe"])
def test_a_sliding_window_in_reach_is_refused(name):
    model = build(name, **PLAIN | WINDOW)
    assert "sliding window of 16 tokens" in refusal(model)
    with pytest.raises(InputError, match="sliding window of 16 tokens"):
        LRSA(**SIZES).check(model.config)
    with pytest.raises(InputError, match="sliding window"):
        LagKVCache(LRSA(**SIZES), model.config)


@torch.no_grad()
def test_a_sliding_window_beyond_the_longest_text_does_nothing():
    model = build("mistral", **PLAIN | {"sliding_window": 100})
    expected = hidden(model, use_cache=False)
    mode = LRSA(**SIZES, retention_ratio=1.0)
    with pytest.raises(InputError, match="256 reaches beyond"):
        mode.install(model)
    mode.for_length(100).install(model)
    assert deviation(hidden(model, use_cache=False), expected) < 1e-4
    generated = generate(model, IDS, mode, 30)
    assert torch.equal(generated, generate(model, IDS, Vanilla(), 30))
    with pytest.raises(InputError, match="sliding window"):
        generate(model, IDS, mode, 31)
    with pytest.raises(InputError, match="101 reaches beyond"):
        hidden(model, IDS.repeat(1, 2)[:, :101], use_cache=False)


@pytest.mark.parametrize(("name", "key"), [("qwen2", "attention_dropout"), ("gpt2", "attn_pdrop")])
def test_dropout_of_attention_weights_is_refused_by_its_name(name, key):
    with pytest.raises(InputError, match=key):
        LRSA(**SIZES).install(build(name, **PLAIN | {key: 0.1}))


@torch.no_grad()
def test_a_layer_of_a_model_that_shares_keys_is_refused():
    config = AutoConfig.for_model("gemma3n_text", num_hidden_layers=4, num_kv_shared_layers=2, hidden_size=32)
    with pytest.raises(InputError, match="attends to other keys"):
        LRSA(**SIZES).for_length(64).check(config)


@pytest.mark.parametrize(
    "asked",
    [
        {"sliding_window": 9},
        {"dropout": 0.1},
        {"softcap": 50.0},
        {"s_aux": torch.zeros(4)},
        {"position_bias": torch.zeros(1)},
        {"is_causal": False},
        {"of_a_later_version": 1.0},
    ],
    ids=str,
)
def test_what_a_call_asks_for_is_honoured_or_refused(asked):
    """The second line of defence: code that only computes so at times."""
    with pytest.raises(InputError, match="full causal attention"):
        check_layer_call(torch.nn.Module(), 10, **asked)


def test_what_means_nothing_is_let_pass():
    nothing = {"sliding_window": None, "dropout": 0.0, "softcap": None, "s_aux": None, "of_a_later_version": None}
    check_layer_call(torch.nn.Module(), 10, **nothing, is_causal=True, position_ids=torch.arange(3), use_cache=True)


@pytest.fixture(scope="module")
def vision_model():
    """Qwen2.5-VL in small: a text decoder beside a vision tower."""
    text = {**architectures.SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    text |= {"bos_token_id": 1, "image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5}
    text |= {"vision_end_token_id": 6, "use_sliding_window": False}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen2_5_vl", text_config=text, vision_config=vision, image_token_id=3)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def test_a_vision_tower_keeps_its_attention(vision_model):
    vision = vision_model.model.visual
    before = vision.config._attn_implementation
    mode = LRSA(**SIZES)
    with mode.installed(vision_model):
        assert vision.config._attn_implementation == before
        assert vision_model.get_decoder().config._attn_implementation == mode.registry_key()
    assert vision_model.get_decoder().config._attn_implementation == before
    assert refusal(vision_model) is None
    Vanilla().install(vision_model)


def test_a_nested_configuration_is_read(caplog):
    config = AutoConfig.for_model("gemma3", text_config={"attention_dropout": 0.1})
    with caplog.at_level(logging.ERROR), pytest.raises(InputError, match="attention_dropout"):
        LRSA(**SIZES).check(config)
    rope = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}
    rope["full_attention"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(InputError, match="rope_type 'dynamic'"):
        LRSA(**SIZES).check(AutoConfig.for_model("gemma3", text_config={"rope_parameters": rope}))


def test_looking_at_a_model_draws_no_random_numbers_and_leaves_it_alone():
    config = make_model().config
    text, state = config.to_json_string(), torch.get_rng_state()
    LRSA(lag_size=9).check(AutoConfig.for_model("qwen2", **architectures.SIZES | {"num_hidden_layers": 3}))
    LRSA(lag_size=9).check(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert config.to_json_string() == text
    assert config._attn_implementation in ALL_ATTENTION_FUNCTIONS
