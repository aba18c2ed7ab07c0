"""Counted operations against a count of the mask itself, and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention.layout import causal_pairs
from lrsa_lightning.attention.naive import lrsa_mask
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.lora.adapters import LoraSettings, adapted
from tests.attention.architectures import build
from tests.conftest import make_model

SIZES = [(0, 8, 0.5), (4, 8, 0.5), (4, 8, 0.25), (3, 7, 1.0), (16, 4, 0.25)]


@pytest.mark.parametrize(("sink", "lag", "retention"), SIZES)
def test_lrsa_sees_as_many_pairs_as_its_mask_holds(sink, lag, retention):
    mode = LRSA(lag, retention, sink)
    for num_tokens in (1, sink + 1, sink + 2 * lag, sink + 2 * lag + 1, sink + 5 * lag - 1, sink + 6 * lag + 3):
        keys, values = torch.randn(2, 1, 1, num_tokens, 8)
        mask = lrsa_mask(keys, values, mode.rule())
        assert mode.visible_pairs(num_tokens) == int(mask.sum())


def test_skipped_layers_and_vanilla_see_all_before_them():
    mode = LRSA(lag_size=8, sink_size=4, skip_layers=[1])
    assert mode.visible_pairs(100, 1) == Vanilla().visible_pairs(100) == causal_pairs(100) == 5050
    assert mode.visible_pairs(100, 0) < 5050


@pytest.mark.parametrize(
    ("model_type", "keys"), [("qwen2", {"head_dim": 16}), ("llama", {"head_dim": 16}), ("qwen2", {})]
)
def test_torchs_counter_finds_the_same_products(model_type, keys):
    """Eager attention computes all N squared pairs, masked or not."""
    model, num_tokens = make_model(model_type, **keys), 24
    Vanilla("eager").install(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, num_tokens, dtype=torch.int64), use_cache=False)
    assert counter.get_total_flops() == products(model.config, num_tokens)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_configurations_without_kv_heads_have_one_for_each_head(name):
    model, num_tokens = build(name, do_layer_norm_before=True), 24
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, num_tokens, dtype=torch.int64), use_cache=False)
    assert counter.get_total_flops() == products(model.config, num_tokens)


def products(config, num_tokens: int) -> int:
    """Operations of a forward of two rows, in which each token is scored against all."""
    flops = DecoderFlops.of(config)
    pairs = config.num_hidden_layers * flops.pair * num_tokens
    return 2 * num_tokens * (flops.token + flops.label_token + pairs)


def test_a_step_is_forward_and_twice_as_much_backward():
    flops = DecoderFlops(Qwen2Config(num_hidden_layers=3), token=10, pair=2, label_token=100)
    mode = LRSA(lag_size=8, retention_ratio=0.5, sink_size=4, skip_layers=[2])
    step = flops.training({40: 1, 20: 2}, 5, mode)
    rest = 80 * 10 + 5 * 100
    assert step.dense == 3 * (rest + 2 * 3 * (820 + 2 * 210))
    seen = [mode.visible_pairs(length, layer) for length in (40, 20, 20) for layer in range(3)]
    assert step.real == 3 * (rest + 2 * sum(seen))
    assert flops.training({80: 1}, 5, mode).dense > step.dense
    assert step.real - flops.training({40: 1, 20: 2}, 5, mode, trains_weights=False).real == rest


def test_torchs_counter_finds_a_frozen_weight_cheaper():
    """Adapters of rank 1: at most a tenth of the operations of a weight is left."""
    model, num_tokens = make_model(hidden_size=64, intermediate_size=128, num_hidden_layers=6), 24
    Vanilla("eager").install(model)
    flops = DecoderFlops.of(model.config)
    adapted(model, LoraSettings(r=1).peft_config())
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, num_tokens, dtype=torch.int64), use_cache=False).logits.sum().backward()
    pairs = 2 * num_tokens * model.config.num_hidden_layers * flops.pair * num_tokens
    expected = 2 * 2 * num_tokens * (flops.token + flops.label_token) + 3 * pairs
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


def test_the_papers_sizes_save_what_the_measurements_say():
    """Element-exact ratios at 32K and 128K, counted for the attention kernels."""
    for retention, length, ratio in ((0.5, 2**15, 1.83), (0.25, 2**15, 3.13), (0.5, 2**17, 1.95), (0.25, 2**17, 3.74)):
        pairs = LRSA(1024, retention, 16).visible_pairs(length)
        assert causal_pairs(length) / pairs == pytest.approx(ratio, abs=0.01)
