"""Kept tokens and attention mass against brute force: the dense mask of `naive`, in float64."""

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention.naive import kept_tokens, lrsa_mask
from lrsa_lightning.diagnosis import CLASSES, Bins, MarkedText, diagnose, mass
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

BINS = Bins(depth=5, offset=4)
SIZES = {"lag_size": 12, "sink_size": 3}


def make_texts() -> list[MarkedText]:
    """Two texts of unequal length, whose tokens are of random classes; the last three are the answer."""
    generator = torch.Generator().manual_seed(0)
    texts = []
    for length in (77, 60):
        ids = torch.randint(97, (length,), generator=generator).tolist()
        classes = torch.randint(4, (length - 3,), generator=generator).tolist()
        texts.append(MarkedText(f"text-{length}", ids, [*classes, 4, 4, 4], 3))
    return texts


def captured(model, mode, text) -> list[tuple]:
    """Queries, keys and values after RoPE of each layer, in float64, as the mode's own function gets them."""
    layers = []
    with mode.installed(model):
        key = model.config._attn_implementation
        inner = ALL_ATTENTION_FUNCTIONS[key]

        def capture(module, q, k, v, *args, **keys):
            layers.append(tuple(z[0].double() for z in (q, k, v)))
            return inner(module, q, k, v, *args, **keys)

        ALL_ATTENTION_FUNCTIONS[key] = capture
        try:
            model.get_decoder()(torch.tensor([text.ids]), use_cache=False)
        finally:
            ALL_ATTENTION_FUNCTIONS[key] = inner
    return layers


def brute_force(layer, q, k, v, rule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept tokens [G, N], full attention [H, N, N] and the rule's mask [H, N, N]."""
    mask = lrsa_mask(k[None], v[None], rule, layer)[0]
    ratio = len(q) // len(k)
    logits = q @ k.repeat_interleave(ratio, 0).transpose(-1, -2) * q.shape[-1] ** -0.5
    causal = torch.ones_like(mask[0]).tril()
    weights = logits.masked_fill(~causal, float("-inf")).softmax(-1)
    return (
        kept_tokens(k[None], v[None], rule, layer)[0].numpy(),
        weights.numpy(),
        mask.repeat_interleave(ratio, 0).numpy(),
    )


def hiding_queries(rule, length: int) -> list[int]:
    return [i for i in range(length) if i >= rule.sink_size + 2 * rule.lag_size]


@pytest.mark.parametrize("scorer", ["lagkv", "random", "key_norm", "window"])
@pytest.mark.parametrize("forward", ["rule", "full"])
@torch.no_grad()
def test_kept_tokens_and_mass_are_those_of_the_dense_mask(scorer, forward, monkeypatch):
    monkeypatch.setattr(mass, "_ELEMENTS", 7 * 4 * 77)  # blocks of seven queries
    model, mode, texts = make_model(), LRSA(scorer=scorer, retention_ratio=0.4, **SIZES), make_texts()
    found = diagnose(model, mode, texts, BINS, forward=forward)
    rule, runs = mode.rule(), mode if forward == "rule" else Vanilla()
    for layer in range(2):
        kept, masses, answers = {"depth": [], "offset": [], "class": []}, [], []
        for text in texts:
            number = len(text.ids)
            own, weights, mask = brute_force(layer, *captured(model, runs, text)[layer], rule)
            chunks = (number - rule.sink_size) // rule.lag_size
            for i in range(rule.sink_size, rule.sink_size + (chunks - 1) * rule.lag_size):
                kept["depth"].append((i * 5 // number, own[:, i]))
                kept["offset"].append(((i - rule.sink_size) % 12 // 3, own[:, i]))
                kept["class"].append((text.classes[i], own[:, i]))
            seen = weights * mask
            masses += [(i * 5 // number, seen[:, i].sum(-1)) for i in hiding_queries(rule, number)]
            by_class = [[text.classes[j] == c for j in range(number)] for c in range(len(CLASSES))]
            for i in range(number - 4, number - 1):
                answers.append([[z[:, i, own_class].sum(-1) for own_class in by_class] for z in (weights, seen)])
        for name, values in (("depth", found.kept_by_depth_AGX), ("offset", found.kept_by_offset_AGX),
                             ("class", found.kept_by_class_AGC)):  # fmt: skip
            for place in range(values.shape[-1]):
                mean = np.mean([z for own_place, z in kept[name] if own_place == place] or [[np.nan] * 2], axis=0)
                np.testing.assert_allclose(values[layer, :, place], mean)
        np.testing.assert_allclose(found.held_AH[layer], np.mean([z for _, z in masses], axis=0), rtol=1e-4)
        for place in range(5):
            mean = np.mean([z for own_place, z in masses if own_place == place] or [np.nan])
            np.testing.assert_allclose(found.held_by_depth_AX[layer, place], mean, rtol=1e-4)
        full, visible = np.mean(answers, axis=0)  # [C, H] each
        np.testing.assert_allclose(found.held_of_answers_AH[layer], visible.sum(0), rtol=1e-4)
        np.testing.assert_allclose(found.answers_look_at_AC[layer], full.mean(1), rtol=1e-4)
        np.testing.assert_allclose(found.answers_see_AC[layer], visible.sum(1) / full.sum(1), rtol=1e-4)


def test_a_smaller_number_of_queries_is_evenly_spaced_and_exact():
    model, mode, texts = make_model(), LRSA(**SIZES), make_texts()[:1]
    every = diagnose(model, mode, texts, Bins(depth=77))
    some = diagnose(model, mode, texts, Bins(depth=77), max_queries=7)
    taken = [i * 11 for i in range(7)]
    hidden = [i for i in taken if i >= 27]
    np.testing.assert_allclose(some.held_by_depth_AX[:, hidden], every.held_by_depth_AX[:, hidden], rtol=1e-6)
    assert np.isfinite(some.held_by_depth_AX[0]).nonzero()[0].tolist() == hidden
    np.testing.assert_allclose(some.held_of_answers_AH, every.held_of_answers_AH, rtol=1e-6)


def test_a_skipped_layer_has_no_values_and_the_model_is_as_before():
    model = make_model()
    model.train()
    LRSA(**SIZES, retention_ratio=0.25).install(model)
    name, ids = model.config._attn_implementation, torch.tensor([make_texts()[0].ids])
    before = model(ids).logits
    found = diagnose(model, LRSA(skip_layers=[1], **SIZES), make_texts(), BINS)
    assert model.training
    assert model.config._attn_implementation == name
    assert torch.equal(model(ids).logits, before)
    assert np.isfinite(found.held_AH[0]).all()
    assert np.isnan(found.held_AH[1]).all()
    assert np.isnan(found.kept_by_offset_AGX[1]).all()


def test_only_one_layers_tensors_live_at_a_time(monkeypatch):
    """The queries, keys and values that a layer shows are free when the next one computes."""
    import weakref

    from lrsa_lightning.diagnosis.tally import Tally

    alive, observe = [], Tally.observe

    def noted(self, layer_idx, *states):
        assert not any(reference() is not None for reference in alive)
        alive.extend(weakref.ref(z) for z in states[:3])
        observe(self, layer_idx, *states)

    monkeypatch.setattr(Tally, "observe", noted)
    diagnose(make_model(num_hidden_layers=3), LRSA(**SIZES), make_texts(), BINS)
    assert len(alive) == 2 * 3 * 3


@pytest.mark.parametrize("mode", [Vanilla(), LRSA(retention_ratio=1.0)])
def test_a_mode_that_keeps_everything_is_refused(mode):
    with pytest.raises(InputError, match="keeps every token"):
        diagnose(make_model(), mode, make_texts())
