"""The parity matrix: masked training forward == prefill in pieces == decoding, and what the cache holds."""

import pytest
import torch

from lrsa_lightning import LRSA, LagKVCache
from lrsa_lightning.attention.cache import cache_bytes
from tests.conftest import make_model

SINK, LAG = 4, 8
LENGTHS = [3, 4, 5, 11, 12, 13, 19, 20, 21, 70]
PIECES = {"one": [1000], "token by token": [1] * 100, "uneven": [5, 1, 1, 9, 1, 30, 1000], "late": [2, 19, 1, 1, 1000]}
GQA = {1: (2, 2), 3: (6, 2), 6: (6, 1)}


def run_in_pieces(model, ids, cache, pieces):
    logits, start = [], 0
    for piece in pieces:
        if start >= ids.shape[1]:
            break
        step = ids[:, start : start + piece]
        logits.append(model(step, past_key_values=cache, use_cache=True).logits)
        start += piece
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("gqa", [1, 3, 6])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@torch.no_grad()
def test_parity(model_type, gqa, head_dim, ratio):
    heads, groups = GQA[gqa]
    model = make_model(
        model_type,
        hidden_size=heads * head_dim,
        head_dim=head_dim,
        num_attention_heads=heads,
        num_key_value_heads=groups,
    )
    for parameter in model.parameters():
        parameter.mul_(0.4)
    mode = LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=ratio)
    mode.install(model)
    for num_tokens in LENGTHS:
        ids = torch.randint(0, 97, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
        expected = model(ids, use_cache=False).logits
        for name, pieces in PIECES.items():
            cache = mode.make_cache(model.config)
            got = run_in_pieces(model, ids, cache, pieces)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            assert cache.get_seq_length() == num_tokens
            assert cache.layers[0].keys.shape[2] == mode.chunking().stored_len(num_tokens)


@torch.no_grad()
def test_skipped_layers_keep_everything():
    model = make_model()
    mode = LRSA(lag_size=LAG, sink_size=SINK, skip_layers=[1])
    mode.install(model)
    ids = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))
    expected = model(ids, use_cache=False).logits
    cache = mode.make_cache(model.config)
    torch.testing.assert_close(run_in_pieces(model, ids, cache, [9, 30, 1, 1, 100]), expected, rtol=0, atol=1e-4)
    assert [layer.keys.shape[2] for layer in cache.layers] == [mode.chunking().stored_len(70), 70]


@torch.no_grad()
def test_cache_bytes_are_those_of_the_tokens_held():
    model = make_model()
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    cache = mode.make_cache(model.config)
    model(torch.zeros(1, 70, dtype=torch.long), past_key_values=cache)
    assert (
        cache_bytes(cache) == 2 * 2 * 2 * mode.chunking().stored_len(70) * 8 * 4
    )  # layers, k and v, heads, D, float32


def test_a_foreign_cache_is_refused_with_the_way_out():
    model = make_model()
    LRSA(lag_size=LAG, sink_size=SINK).install(model)
    with pytest.raises(ValueError, match=r"mode\.make_cache"), torch.no_grad():
        model.generate(torch.ones(1, 30, dtype=torch.long), max_new_tokens=4, pad_token_id=0)


def test_cropping_is_refused():
    cache = LagKVCache(LRSA(), make_model().config)
    with pytest.raises(ValueError, match="cropped"):
        cache.crop(-1)


@torch.no_grad()
def test_reset_empties_the_cache():
    model = make_model()
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    ids = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    cache = mode.make_cache(model.config)
    first = model(ids, past_key_values=cache).logits
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(model(ids, past_key_values=cache).logits, first)
