"""The parity matrix: masked training forward == prefill in pieces == decoding, and what the cache holds."""

import copy
import gc
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lrsa_lightning import LRSA, LagKVCache, Vanilla, generate
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.attention.scorers import Scorer
from lrsa_lightning.errors import InputError
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


def assert_parity(model, mode, ids, pieces):
    """Logits of the masked training forward against those of the cache filled in pieces, and what it holds."""
    expected = model(ids, use_cache=False).logits
    cache = mode.make_cache(model.config)
    torch.testing.assert_close(run_in_pieces(model, ids, cache, pieces), expected, rtol=0, atol=1e-4)
    assert cache.get_seq_length() == ids.shape[1]
    for layer_idx, layer in enumerate(cache.layers):
        assert layer.keys.shape[2] == mode.rule(layer_idx).stored_len(ids.shape[1])


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
        for pieces in PIECES.values():
            assert_parity(model, mode, ids, pieces)


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize(
    "mode",
    [
        LRSA(lag_size=LAG, sink_size=SINK, skip_layers=[1]),
        LRSA(lag_size=LAG, sink_size=SINK, v_weight=0.0),
        LRSA(lag_size=LAG, sink_size=SINK, scorer="random", seed=7),
        LRSA(lag_size=LAG, sink_size=SINK, scorer="key_norm"),
        LRSA(lag_size=LAG, sink_size=SINK, scorer="window"),
        LRSA(lag_size=LAG, sink_size=0, chunks_per_fill=3),
        LRSA(lag_size=1, sink_size=1, retention_ratio=1.0),
        LRSA(lag_size=5, sink_size=3, retention_ratio=0.3),
    ],
    ids=repr,
)
@torch.no_grad()
def test_parity_of_every_option(mode, pieces):
    model = make_model()
    mode.install(model)
    ids = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(0))
    assert_parity(model, mode, ids, pieces)


@dataclass(frozen=True)
class WatchedScorer:
    """A scorer that remembers how close the last kept and the first dropped score ever came."""

    scorer: Scorer
    kept: int
    gaps: list[float] = field(default_factory=list, compare=False)

    def score(self, *arguments):
        scores = self.scorer.score(*arguments)
        if scores.numel() and 0 < self.kept < scores.shape[-1]:
            ordered = scores.sort(dim=-1, descending=True).values
            self.gaps.append(float((ordered[..., self.kept - 1] - ordered[..., self.kept]).min()))
        return scores


class Watched(LRSA):
    """LRSA whose scorer is watched."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self._rules = tuple(replace(rule, scorer=WatchedScorer(rule.scorer, rule.kept)) for rule in self._rules)

    @property
    def smallest_gap(self) -> float:
        return min(self.rule().scorer.gaps, default=float("inf"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_tokens=st.integers(1, 90),
    sink_size=st.integers(0, 9),
    lag_size=st.integers(2, 16),
    retention_ratio=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    scorer=st.sampled_from(["lagkv", "lagkv", "lagkv", "window"]),
    chunks_per_fill=st.integers(1, 4),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seed=st.integers(0, 3),
)
@torch.no_grad()
def test_parity_property(num_tokens, pieces, seed, **arguments):
    assume(arguments["scorer"] == "window" or arguments["lag_size"] * arguments["retention_ratio"] >= 1)
    model, mode = make_model(seed=seed), Watched(**arguments)
    mode.install(model)
    ids = torch.randint(0, 97, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    model(ids, use_cache=False)
    assume(mode.smallest_gap > 1e-6)  # closer scores may be ordered either way by rounding
    assert_parity(model, mode, ids, [*pieces, 1000])


@torch.no_grad()
def test_cache_bytes_are_those_of_the_tokens_held():
    model = make_model()
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    cache = mode.make_cache(model.config)
    model(torch.zeros(1, 70, dtype=torch.long), past_key_values=cache)
    assert cache_bytes(cache) == 2 * 2 * 2 * mode.rule().stored_len(70) * 8 * 4  # layers, k and v, heads, D, float32


def test_a_foreign_cache_is_refused_with_the_way_out():
    model = make_model()
    LRSA(lag_size=LAG, sink_size=SINK).install(model)
    ids = torch.ones(1, 30, dtype=torch.long)
    with torch.no_grad():
        full = make_model()(ids, use_cache=True).past_key_values
        with pytest.raises(InputError, match=r"holds 30 tokens already.*mode\.make_cache"):
            model.generate(ids, past_key_values=full, max_new_tokens=4, pad_token_id=0)


@pytest.mark.parametrize(
    "installed", [None, Vanilla("eager"), LRSA(lag_size=LAG, sink_size=SINK, v_weight=0.5)], ids=str
)
def test_a_model_that_runs_another_mode_is_refused_before_the_first_token(installed):
    """Its attention would read compressed keys as if they were all, without an error."""
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    if installed is not None:
        installed.install(model)
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 1, "pad_token_id": 0}
    with pytest.raises(InputError, match=r"this cache follows LRSA\(lag_size=8.*installed\(model\)"):
        model.generate(ids, past_key_values=mode.make_cache(model.config), **arguments)
    cache = mode.make_cache(copy.deepcopy(model.config))  # which no longer says what the model runs
    cache._config._attn_implementation = None
    with pytest.raises(InputError, match="this cache follows"):
        model.generate(ids[:, :10], past_key_values=cache, max_new_tokens=1, pad_token_id=0)


@torch.no_grad()
def test_another_mode_is_refused_however_late_it_comes():
    model, mode = make_model(num_hidden_layers=1), LRSA(lag_size=LAG, sink_size=SINK)
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    cache = mode.make_cache(model.config)
    with mode.installed(model):
        model(ids, past_key_values=cache)
    with pytest.raises(InputError, match="not installed in the model"):
        model(ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_an_equal_mode_may_read_the_cache():
    model = make_model()
    LRSA(lag_size=LAG, sink_size=SINK).install(model)
    cache = LRSA(lag_size=LAG, sink_size=SINK).make_cache(model.config)
    model(torch.zeros(1, 40, dtype=torch.long), past_key_values=cache)
    assert cache.get_seq_length() == 40


@torch.no_grad()
def test_rows_of_unequal_length_hold_no_more_than_the_longest_needs():
    """Padding that all rows have in front is dropped, after the prompts and whenever a row compresses."""
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=0.25)
    mode.install(model)
    lengths = [45, 27, 60]
    cache = mode.make_cache(model.config, lengths)
    ids = torch.randint(0, 97, (3, 60), generator=torch.Generator().manual_seed(0))
    model(ids, past_key_values=cache)
    for step in range(2 * LAG + 1):
        longest = max(mode.rule().stored_len(length + step) for length in lengths)
        assert {layer.keys.shape[2] for layer in cache.layers} == {longest}
        assert cache_bytes(cache) == 2 * 2 * 3 * 2 * longest * 8 * 4  # layers, k and v, rows, heads, D, float32
        positions = torch.tensor([[length + step] for length in lengths])
        model(ids[:, :1], past_key_values=cache, position_ids=positions)


def test_a_step_reads_each_new_token_once():
    """Nothing is computed again for the tokens before: of a prompt's length a decoding step knows only the cache."""
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    read = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].shape[1]))
    generate(model, torch.zeros(1, 50, dtype=torch.long), mode, 6, prefill_chunk_size=20)
    assert read == [17, 17, 16, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("lengths", [[3, 0], [3, -1], [3, 2.5]], ids=str)
def test_lengths_below_one_are_refused(lengths):
    with pytest.raises(InputError, match="lengths"):
        LRSA().make_cache(make_model().config, lengths)


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


@torch.no_grad()
def test_what_a_step_returned_is_freed_with_it():
    """A step's keys must not hold themselves: at 32K tokens the garbage collector would come too late."""
    layer = LRSA(lag_size=8, sink_size=4).make_cache(make_model().config).layers[0]
    gc.disable()
    try:
        for num_tokens in (40, 1, 1):
            keys, _ = layer.update(torch.randn(1, 2, num_tokens, 16), torch.randn(1, 2, num_tokens, 16))
            returned = weakref.ref(keys)
        layer.reset()
        del keys
        assert returned() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_the_decoder_takes_its_cache_by_position_too():
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    by_name = model.model(ids, past_key_values=mode.make_cache(model.config)).last_hidden_state
    by_position = model.model(ids, None, None, mode.make_cache(model.config)).last_hidden_state
    assert torch.equal(by_position, by_name)


@torch.no_grad()
def test_a_mode_is_installed_twice_and_in_a_copy():
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    mode.install(model)
    copied = copy.deepcopy(model)
    mode.install(copied)
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    outputs = [m(ids, past_key_values=mode.make_cache(m.config)).logits for m in (model, copied)]
    assert torch.equal(*outputs)


@torch.no_grad()
def test_the_cache_holds_what_the_model_computes_in_under_autocast():
    model, mode = make_model(), LRSA(lag_size=LAG, sink_size=SINK)
    mode.install(model)
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    cache = mode.make_cache(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ids, use_cache=False).logits
        got = run_in_pieces(model, ids, cache, [31, 1, 1, 1000])
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
    assert (got - expected).norm() < 0.03 * expected.norm()
