"""The compressed cache under torch.compile: no graph break, few graphs, and what eager computes."""

from copy import deepcopy

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.errors import InputError
from tests.attention.architectures import MIXED, PLAIN, WINDOW, build
from tests.conftest import make_model

IDS = torch.randint(2, 97, (2, 70), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :13] = 0
SIZES = {"lag_size": 8, "sink_size": 4}
# A prompt, single tokens over several chunks, then pieces that complete none, one and several.
PIECES = [22, *[1] * 18, 3, 7, 20]


class Graphs:
    """A backend that counts the graphs it is given, and runs them as aot_eager does."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def no_earlier_graphs():
    torch._dynamo.reset()


@pytest.fixture
def model():
    model = make_model(num_hidden_layers=1).double().eval()
    LRSA(**SIZES).install(model)
    return model


@torch.no_grad()
def logits(forward, config, pieces, mask=None, rule=SIZES):
    """Of all tokens, given in pieces, and the cache that then holds them."""
    cache, out, seen = LRSA(**rule).make_cache(config), [], 0
    for piece in IDS[:, : sum(pieces)].split(pieces, dim=1):
        seen += piece.shape[1]
        known = {} if mask is None else {"attention_mask": mask[:, :seen]}
        out.append(forward(piece, past_key_values=cache, **known).logits)
    return torch.cat(out, dim=1), cache


# The prompt, one token, any number of tokens; one token twice where a mask grows with it.
@pytest.mark.parametrize(("mask", "num_graphs"), [(None, 3), (PADDED, 4)], ids=["equal", "padded"])
def test_a_few_graphs_serve_all_steps_of_all_caches(model, mask, num_graphs):
    graphs = Graphs()
    forward = torch.compile(model, backend=graphs, fullgraph=True)
    expected, held = logits(model, model.config, PIECES, mask)
    for _ in range(2):
        got, cache = logits(forward, model.config, PIECES, mask)
        torch.testing.assert_close(got[PADDED.bool()], expected[PADDED.bool()], rtol=1e-10, atol=1e-12)
        assert torch.equal(cache.layers[0].keys, held.layers[0].keys)
        assert cache.get_seq_length() == held.get_seq_length() == 70
    assert graphs.count == num_graphs


@pytest.mark.slow
def test_inductor_compiles_it(model):
    forward, pieces = torch.compile(model, fullgraph=True), PIECES[:12]
    got, expected = (logits(run, model.config, pieces)[0] for run in (forward, model))
    # The model's own norms compute in float32, which inductor rounds otherwise.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_transformers_generate_with_a_compiled_forward(model):
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    eager = model.forward
    for extra in ({}, {"num_beams": 3}):
        expected = model.generate(IDS, attention_mask=PADDED, **settings, **extra)
        model.forward = torch.compile(eager, backend="aot_eager")
        assert torch.equal(model.generate(IDS, attention_mask=PADDED, **settings, **extra), expected)
        model.forward = eager


@pytest.mark.slow
def test_a_hybrid_model_keeps_its_own_caches():
    model = build("gemma3_text", **PLAIN | WINDOW | MIXED).double().eval()
    LRSA(**SIZES).install(model)
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    pieces = [44, *[1] * 16]
    got, expected = (logits(run, model.config, pieces)[0] for run in (forward, model))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_copy_of_a_cache_is_a_cache_of_its_own(model):
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    _, cache = logits(forward, model.config, [20])
    copied = deepcopy(cache)
    got = [forward(IDS[:, 20:21], past_key_values=each).logits for each in (cache, copied)]
    assert torch.equal(*got)
    assert cache.get_seq_length() == copied.get_seq_length() == 21


def test_a_cache_of_another_rule_is_refused_as_in_eager(model):
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(InputError, match="which is not installed in the model"):
        logits(forward, model.config, [20], rule=SIZES | {"retention_ratio": 0.25})


def test_a_compiled_model_with_full_attention_refuses_the_cache(model):
    """It would see the new tokens alone."""
    Vanilla().install(model)
    forward = torch.compile(model, backend="aot_eager")
    with pytest.raises(Exception, match="which is not installed in the model"):
        logits(forward, model.config, [20])


@torch.no_grad()
def test_packed_rows_without_boundaries_are_refused_as_in_eager(model):
    forward, restarting = torch.compile(model, backend="aot_eager", fullgraph=True), torch.arange(35).repeat(2, 2)
    for run in (model, forward):
        with pytest.raises(InputError, match="do not rise by one"):
            run(IDS, position_ids=restarting, past_key_values=LRSA(**SIZES).make_cache(model.config))


def test_a_whole_graph_needs_a_cache_that_is_given(model):
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), pytest.raises(Exception, match=r"give the forward mode\.make_cache"):
        forward(IDS, use_cache=True)
