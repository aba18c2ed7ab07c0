"""Modes inside transformers models: swap, swap back, refusals."""

import logging
import math

import pytest
import torch
from lightning import Trainer

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from tests.conftest import TINY_MODEL, make_model

KEEPING = ("lagkv", "random", "key_norm")
IDS = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_swap_changes_the_logits_and_swapping_back_restores_them(model_type):
    model = make_model(model_type)
    before = model(IDS).logits
    LRSA(lag_size=8, sink_size=4).install(model)
    assert (model(IDS, use_cache=False).logits - before).abs().max() > 1e-2
    Vanilla().install(model)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_full_retention_equals_vanilla(model_type):
    model = make_model(model_type)
    before = model(IDS).logits
    LRSA(lag_size=8, sink_size=4, retention_ratio=1.0).install(model)
    torch.testing.assert_close(model(IDS, use_cache=False).logits, before, rtol=0, atol=1e-4)


def test_backends_agree_inside_a_model():
    model = make_model()
    logits = []
    for backend in ("naive", "fill", "auto"):
        LRSA(lag_size=8, sink_size=4, backend=backend).install(model)
        logits.append(model(IDS, use_cache=False).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert torch.equal(logits[1], logits[2])


def test_two_models_in_one_process_run_two_modes():
    first, second = make_model(), make_model()
    LRSA(lag_size=8, sink_size=4, retention_ratio=0.5).install(first)
    alone = first(IDS, use_cache=False).logits
    LRSA(lag_size=8, sink_size=4, retention_ratio=0.25).install(second)
    assert torch.equal(first(IDS, use_cache=False).logits, alone)
    assert (second(IDS, use_cache=False).logits - alone).abs().max() > 1e-2


def test_right_padding_does_not_reach_real_tokens():
    model = make_model()
    LRSA(lag_size=8, sink_size=4).install(model)
    mask = torch.ones_like(IDS)
    mask[0, 45:] = 0
    padded = model(IDS, attention_mask=mask, use_cache=False).logits
    alone = model(IDS[:1, :45], use_cache=False).logits
    torch.testing.assert_close(padded[:1, :45], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", [None, "counted"])
def test_left_padding_is_exact(positions):
    """Padding in front is a sample of its own, that no token sees; gradients are those of the row alone."""
    model = make_model()
    LRSA(lag_size=8, sink_size=4).install(model)
    mask = torch.ones_like(IDS)
    mask[0, :13] = 0
    position_ids = None if positions is None else (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(IDS, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
    torch.testing.assert_close(padded[:1, 13:], model(IDS[:1, 13:], use_cache=False).logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(padded[1:], model(IDS[1:], use_cache=False).logits, rtol=0, atol=1e-4)


def test_padding_between_tokens_is_refused():
    model = make_model()
    LRSA(lag_size=8, sink_size=4).install(model)
    mask = torch.ones_like(IDS)
    mask[0, 3] = 0
    with pytest.raises(ValueError, match="holes"):
        model(IDS, attention_mask=mask)


def test_checkpointing_recomputes_the_same_selection():
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        LRSA(lag_size=8, sink_size=4).install(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'dynamic'"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
    ],
)
def test_models_it_cannot_be_exact_for_are_refused(keys, message):
    model = make_model(**keys)
    with pytest.raises(ValueError, match=message):
        LRSA().install(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lag_size": 0}, "lag_size"),
        ({"lag_size": 2.5}, "lag_size"),
        ({"retention_ratio": 1.5}, "retention_ratio"),
        ({"retention_ratio": math.nan}, "retention_ratio"),
        ({"sink_size": -1}, "sink_size"),
        ({"v_weight": math.inf}, "v_weight"),
        ({"v_weight": math.nan}, "v_weight"),
        ({"skip_layers": [-1]}, "skip_layers"),
        ({"skip_layers": [1, 1]}, "skip_layers"),
        ({"scorer": "lagvk"}, "scorer"),
        ({"backend": "flash"}, "backend"),
        ({"chunks_per_fill": 0}, "chunks_per_fill"),
        *(({"lag_size": 3, "retention_ratio": 0.3, "scorer": s}, "keeps no token") for s in KEEPING),
        *(({"retention_ratio": 0.0, "scorer": s}, "keeps no token") for s in KEEPING),
    ],
    ids=str,
)
def test_sizes_outside_their_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LRSA(**arguments)


def test_an_implementation_that_transformers_does_not_have_is_refused():
    with pytest.raises(InputError, match="'spda': did you mean sdpa"):
        Vanilla("spda").check(make_model().config)


def test_the_window_keeps_nothing_at_any_ratio():
    assert LRSA(lag_size=3, retention_ratio=0.3, scorer="window").rule().kept == 0


@pytest.mark.parametrize(
    ("mode", "remarks"),
    [
        (LRSA(lag_size=8, sink_size=4), False),
        (LRSA(lag_size=32, sink_size=4), False),
        (LRSA(lag_size=33, sink_size=4), True),
        (LRSA(lag_size=8, sink_size=84), True),
        (LRSA(lag_size=8, sink_size=4, retention_ratio=1.0), True),
        (LRSA(lag_size=8, sink_size=4, skip_layers=[0]), False),
        (LRSA(lag_size=8, sink_size=4, skip_layers=[0, 1]), True),
        (LRSA(lag_size=8, sink_size=4, scorer="window"), False),
        (Vanilla(), False),
    ],
    ids=str,
)
def test_a_mode_that_is_full_attention_at_this_length_says_so_at_the_start(mode, remarks, caplog):
    module = LongContextModule(mode, from_config={**TINY_MODEL, "vocab_size": 97}, seq_len=69)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.WARNING, logger="lrsa_lightning"):
        module.prepare_data()
    assert sum("it is full attention here" in line for line in caplog.messages) == remarks


@pytest.mark.parametrize("seq_len", [64, 65])
def test_the_module_knows_how_far_a_sliding_window_reaches(seq_len):
    """Of models that have one it trains those whose texts it never cuts."""
    keys = {**TINY_MODEL, "vocab_size": 97, "model_type": "mistral", "sliding_window": 64}
    module = LongContextModule(LRSA(lag_size=8, sink_size=4), from_config=keys, seq_len=seq_len)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    if seq_len == 65:
        with pytest.raises(InputError, match="sliding window of 64"):
            module.prepare_data()
    else:
        module.prepare_data()
        module.setup("fit")
        module.configure_model()


@pytest.mark.parametrize("mode", [LRSA(lag_size=8, sink_size=4), Vanilla("eager")], ids=repr)
def test_an_error_brings_the_earlier_mode_back(mode):
    model = make_model()
    with pytest.raises(RuntimeError, match="on purpose"), mode.installed(model):
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == "sdpa"


def test_skip_layers_beyond_the_model_are_refused():
    with pytest.raises(ValueError, match="skip_layers"):
        LRSA(skip_layers=[2]).install(make_model())


def test_yarn_is_accepted():
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 512}
    LRSA().install(make_model(rope_parameters=rope))
