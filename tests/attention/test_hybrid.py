"""Hybrid models: LRSA in the full-attention layers, each other layer as it is, with its own mask and its own cache."""

import pytest
import torch
from transformers import DynamicCache

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention.hybrid import check_full_attention, check_packed_rows, kept_layers
from lrsa_lightning.errors import InputError
from tests.attention.architectures import MIXED, PLAIN, WINDOW, build
from tests.attention.exactness import IDS, SIZES, deviation, hidden, refusal

KEYS = PLAIN | WINDOW | MIXED
EXACT = {
    "gemma3_text": {0, 1, 2, 3, 4},
    "cohere2": {0, 1, 2, 4, 5},
    "llama4_text": {0, 1, 2, 4, 5},
    "olmo3": {0, 1, 2, 4, 5},
    "qwen3_next": {0, 1, 2, 4, 5},
    "qwen3_5_text": {0, 1, 2, 4, 5},
}
SAMPLES = [0, 31, 70]


@pytest.mark.parametrize("name", EXACT)
def test_the_executions_agree(name):
    model = build(name, **KEYS)
    assert kept_layers(model.config) == EXACT[name]
    assert refusal(model) is None


def installed(name):
    model, mode = build(name, **KEYS), LRSA(**SIZES)
    mode.install(model)
    return model, mode


@torch.no_grad()
def test_a_kept_layer_is_what_the_model_made_it():
    """All layers but the last are windows: what enters the last layer is that of the model without LRSA."""
    model = build("gemma3_text", **KEYS)
    seen = []
    model.get_decoder().layers[-1].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    plain = hidden(model, use_cache=False)
    LRSA(**SIZES).install(model)
    assert deviation(hidden(model, use_cache=False), plain) > 1e-2
    assert deviation(*seen) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3_text", "llama4_text"])
def test_samples_of_a_packed_row_are_as_if_run_alone(name):
    model, mode = installed(name)
    positions = torch.cat([torch.arange(31), torch.arange(39)]).expand(2, -1)
    rows = mode.row_arguments([SAMPLES, SAMPLES], IDS.device)
    packed = hidden(model, position_ids=positions, use_cache=False, **rows)
    alone = [hidden(model, ids, use_cache=False) for ids in (IDS[:, :31], IDS[:, 31:])]
    assert deviation(packed, torch.cat(alone, dim=1)) < 1e-4
    with pytest.raises(InputError, match="disagree"):
        hidden(model, position_ids=torch.arange(70).expand(2, -1), use_cache=False, **rows)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next"])
def test_a_row_padded_in_front_is_as_if_run_alone(name):
    model, mode = installed(name)
    mask = torch.ones_like(IDS)
    mask[0, :21] = 0
    alone = hidden(model, IDS[:1, 21:], use_cache=False)
    assert deviation(hidden(model, attention_mask=mask, use_cache=False)[:1, 21:], alone) < 2e-4
    together = model.generate(IDS, attention_mask=mask, max_new_tokens=20, do_sample=False,
                              past_key_values=mode.make_cache(model.config), eos_token_id=None)  # fmt: skip
    for row, ids in enumerate([IDS[:1, 21:], IDS[1:]]):
        assert torch.equal(together[row, 70:], generate(model, ids, mode, 20, eos_token_id=[])[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next"])
def test_a_beam_takes_its_windows_and_states_with_it(name):
    model, mode = installed(name)
    ends = []
    for order in ([0, 1], [1, 0]):
        cache = mode.make_cache(model.config)
        hidden(model, IDS[:, :64], past_key_values=cache)
        cache.reorder_cache(torch.tensor(order))
        ends.append(hidden(model, IDS[order, 64:], past_key_values=cache)[order])
    assert deviation(*ends) < 1e-5


@torch.no_grad()
def test_what_a_kept_layer_cannot_compute_is_refused():
    model, mode = installed("gemma3_text")
    with pytest.raises(InputError, match="count columns"):
        mode.make_cache(model.config, [70, 31])
    mask = torch.ones_like(IDS)
    mask[0, 40:] = 0
    with pytest.raises(InputError, match="on the left"):
        hidden(model, attention_mask=mask, past_key_values=mode.make_cache(model.config))
    with pytest.raises(InputError, match="state runs through"):
        check_packed_rows(build("qwen3_next", **KEYS).config)
    check_packed_rows(model.config)


@pytest.mark.parametrize("name", ["gemma3_text", "mistral", "qwen3_next"])
def test_ranks_do_not_share_a_window(name):
    config = build(name, **KEYS).config
    with pytest.raises(InputError, match=r"sequence_parallel\.size to 1"):
        check_full_attention(config, 17)


def test_ranks_share_what_a_window_does_not_reach():
    check_full_attention(build("mistral", **KEYS).config, 16)
    check_full_attention(build("qwen3", **PLAIN).config, 10**6)


@torch.no_grad()
def test_a_cache_of_another_mode_is_still_found():
    model, mode = installed("gemma3_text")
    cache = mode.make_cache(model.config)
    Vanilla().install(model)
    with pytest.raises(InputError, match="not installed"):
        hidden(model, past_key_values=cache)
    mode.install(model)
    begun = DynamicCache(config=model.config)
    hidden(model, IDS[:, :9], past_key_values=begun)
    assert deviation(hidden(model, IDS[:, 9:], past_key_values=begun), hidden(model, use_cache=False)[:, 9:]) < 1e-4


def test_gradients_reach_every_layer_and_survive_recomputation():
    gradients = []
    for recomputes in (False, True):
        model, _ = installed("gemma3_text")
        model.train()
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*gradients, strict=True))
