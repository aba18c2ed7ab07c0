"""What layers see and store, against the masks and caches that transformers makes for them."""

import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import eager_mask

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.attention.layer_pairs import layer_pairs, stored_tokens
from lrsa_lightning.attention.layout import causal_pairs
from tests.attention.architectures import MIXED, PLAIN, WINDOW, build
from tests.attention.exactness import IDS, SIZES

KEYS = PLAIN | WINDOW | MIXED
NUM_TOKENS = IDS.shape[1]
NAMES = ["gemma3_text", "llama4_text", "qwen3_next", "mistral", "qwen2", "gpt2"]


@torch.no_grad()
def pairs_of_masks(model) -> list[int]:
    """Visible pairs of each layer's attention, by the masks that the eager function gets; 0 where it is not called."""
    pairs = [0] * model.config.num_hidden_layers

    def seen(module, query, key, value, mask, **arguments):
        pairs[module.layer_idx] = int((mask[0, 0] == 0).sum())
        return query.transpose(1, 2).contiguous(), None

    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("counts_pairs", seen)
    AttentionMaskInterface.register("counts_pairs", eager_mask)
    model.set_attn_implementation("counts_pairs")
    model(IDS, use_cache=False)
    return pairs


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_those_of_the_models_own_masks(name):
    model, mode = build(name, **KEYS), LRSA(**SIZES)
    config, own = model.config, pairs_of_masks(model)
    assert layer_pairs(config, Vanilla(), NUM_TOKENS) == layer_pairs(config, None, NUM_TOKENS) == own
    if kept := kept_layers(config):
        assert any(own[layer] < causal_pairs(NUM_TOKENS) for layer in kept)
        of_mode = [mode.visible_pairs(NUM_TOKENS, layer) for layer in range(len(own))]
        mixed = [own[layer] if layer in kept else pairs for layer, pairs in enumerate(of_mode)]
        assert layer_pairs(config, mode, NUM_TOKENS) == mixed


@torch.no_grad()
@pytest.mark.parametrize(("name", "window"), [*((name, 16) for name in NAMES), ("gemma3_text", 60)])
@pytest.mark.parametrize("mode", [LRSA(**SIZES), Vanilla()], ids=repr)
def test_stored_tokens_are_those_of_a_cache(name, window, mode):
    beyond = name in ("mistral", "qwen2") and isinstance(mode, LRSA)  # refused where a window is within reach
    keys = {"sliding_window": 300 if beyond else window}
    model = build(name, **KEYS | keys)
    mode.install(model)
    cache = mode.make_cache(model.config) if isinstance(mode, LRSA) else DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)
    held = [getattr(layer, "keys", None) for layer in cache.layers]
    stored = [0 if keys is None else keys.shape[2] for keys in held]
    assert all(
        abs(counted - tokens) <= 1  # a window's cache leaves room for the next token
        for counted, tokens in zip(stored_tokens(model.config, mode, NUM_TOKENS), stored, strict=True)
    )
