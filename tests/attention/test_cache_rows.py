"""Rows of unequal length in one cache, padded on the left: each is exact as if alone, whatever the storage does."""

import copy

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention import cache_layer
from lrsa_lightning.attention.execution import Execution
from tests.conftest import make_model

SINK, LAG = 4, 8
UNEQUAL = [61, 30, 45]


def left_padded(lengths):
    width = max(lengths)
    ids = torch.randint(0, 97, (len(lengths), width), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("prefill_chunk_size", [None, 7, 25])
@pytest.mark.parametrize(
    "mode",
    [
        LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=0.25, skip_layers=[1]),
        LRSA(lag_size=LAG, sink_size=SINK, scorer="random"),
        LRSA(lag_size=5, sink_size=0, scorer="window"),
    ],
    ids=repr,
)
def test_left_padded_rows_of_transformers_generate_equal_each_row_alone(mode, prefill_chunk_size):
    model = make_model()
    ids, mask = left_padded(UNEQUAL)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with mode.installed(model):
        together = model.generate(
            ids,
            attention_mask=mask,
            past_key_values=mode.make_cache(model.config),
            prefill_chunk_size=prefill_chunk_size,
            **options,
        )
    for row, length in enumerate(UNEQUAL):
        alone = generate(model, ids[row : row + 1, -length:], mode, 20)
        assert torch.equal(together[row : row + 1, max(UNEQUAL) :], alone)


@pytest.mark.parametrize("prefill_chunk_size", [100, 23])
@pytest.mark.parametrize("mode", [Vanilla(), LRSA(lag_size=LAG, sink_size=SINK), LRSA(lag_size=LAG, sink_size=30)])
def test_rows_of_about_one_length_are_read_together_and_equal_each_row_alone(mode, prefill_chunk_size, monkeypatch):
    """Lengths within three numbers of compressed chunks, in any order; the sink of 30 is longer than some rows."""
    model, lengths = make_model(), [61, 25, 63, 26, 60, 24, 44, 62, 27, 45]
    ids = torch.randint(0, 97, (len(lengths), 63), generator=torch.Generator().manual_seed(3))
    alone = [generate(model, ids[row : row + 1, :length], mode, 20)[0] for row, length in enumerate(lengths)]
    rows_read = []
    attend = Execution.attend_cached
    monkeypatch.setattr(Execution, "attend_cached", lambda self, q, *a: rows_read.append(len(q)) or attend(self, q, *a))
    together = generate(model, ids, mode, 20, lengths=lengths, prefill_chunk_size=prefill_chunk_size)
    assert torch.equal(together, torch.stack(alone))
    groups, num_pieces = (1 if isinstance(mode, Vanilla) else 3), -(-63 // prefill_chunk_size)
    assert len(rows_read) <= groups * num_pieces * model.config.num_hidden_layers


@pytest.mark.parametrize("turn", [1, 3, 11, 30])
@torch.no_grad()
def test_turns_after_unequal_rows_equal_one_prompt_of_all(turn):
    """Several tokens a row at unequal offsets: each row is compressed at its own boundaries."""
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    ids, mask = left_padded(UNEQUAL)
    more = torch.randint(0, 97, (3, turn), generator=torch.Generator().manual_seed(4))
    cache = mode.make_cache(model.config)
    model(ids, attention_mask=mask, past_key_values=cache)
    mask = torch.cat([mask, torch.ones_like(more)], dim=1)
    got = model(more, attention_mask=mask, past_key_values=cache).logits
    for row, length in enumerate(UNEQUAL):
        all_ids = torch.cat([ids[row : row + 1, -length:], more[row : row + 1]], dim=1)
        expected = model(all_ids, use_cache=False).logits[:, -turn:]
        torch.testing.assert_close(got[row : row + 1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [[29], [30, 12]], ids=str)
@torch.no_grad()
def test_storage_that_is_sized_or_grows_holds_the_same(lengths, monkeypatch):
    monkeypatch.setattr(cache_layer, "_LEAST_GROWTH", 3)
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=0.25, skip_layers=[0])
    mode.install(model)
    ids, mask = left_padded(lengths)
    caches = [mode.make_cache(model.config, max_tokens=longest) for longest in (None, 80)]
    for cache in caches:
        model(ids, attention_mask=mask, past_key_values=cache)
    sizes = [[layer.storage_bytes for layer in cache.layers] for cache in caches]
    for step in range(50):
        logits = []
        for cache in caches:
            position = torch.tensor([[length + step] for length in lengths])
            logits.append(model(ids[:, :1], position_ids=position, past_key_values=cache).logits)
        assert torch.equal(*logits)
    grown, sized = ([layer.storage_bytes for layer in cache.layers] for cache in caches)
    assert sized == sizes[1]  # made once
    assert all(after > before for after, before in zip(grown, sizes[0], strict=True))
    row_bytes = 2 * 2 * 8 * 4 * len(lengths)  # k and v, heads, D, float32
    assert sized == [mode.rule(layer).most_held(80) * row_bytes for layer in range(2)]


@torch.no_grad()
def test_beams_of_unequal_rows_take_their_counts_along():
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    ids, mask = left_padded([30, 21])
    cache = mode.make_cache(model.config)
    model(ids, attention_mask=mask, past_key_values=cache)
    copied = copy.deepcopy(cache)
    copied.reorder_cache(torch.tensor([1, 1, 0]))
    for step in range(12):
        one = torch.tensor([[step], [step]])
        position = torch.tensor([[30 + step], [21 + step]])
        expected = model(one, position_ids=position, past_key_values=cache).logits
        got = model(one[[1, 1, 0]], position_ids=position[[1, 1, 0]], past_key_values=copied).logits
        torch.testing.assert_close(got, expected[[1, 1, 0]], rtol=0, atol=1e-5)


def test_beam_search_over_left_padded_rows_equals_its_own_without_cache():
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    ids, mask = left_padded([50, 61, 6])
    options = {"attention_mask": mask, "max_new_tokens": 15, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with mode.installed(model):
        cached = model.generate(ids, past_key_values=mode.make_cache(model.config), **options)
        recomputed = model.generate(ids, use_cache=False, **options)
    assert torch.equal(cached, recomputed)
