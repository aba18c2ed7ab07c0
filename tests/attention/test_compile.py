"""torch.compile of a model with LRSA: one graph without breaks, for every length, and what eager computes."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import compiled
from lrsa_lightning.errors import InputError
from tests.attention.architectures import MIXED, PLAIN, WINDOW, build
from tests.conftest import make_model

IDS = torch.randint(2, 97, (2, 70), generator=torch.Generator().manual_seed(0))
SIZES = {"lag_size": 8, "sink_size": 4}
PADDED = torch.ones_like(IDS)
PADDED[0, :13] = 0
PADDED[1, 40:] = 0
PACKED = torch.cat([torch.arange(31), torch.arange(39)]).expand(2, -1)


@pytest.fixture(autouse=True)
def no_earlier_graphs():
    torch._dynamo.reset()


@pytest.fixture
def model():
    model = make_model(num_hidden_layers=1).double()
    LRSA(**SIZES).install(model)
    return model


def step(model, forward, **arguments):
    """Logits and gradients of a forward."""
    model.zero_grad()
    logits = forward(**arguments).logits
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_equal_steps(model, forward, tolerance=1e-10, **arguments):
    for got, expected in zip(step(model, forward, **arguments), step(model, model, **arguments), strict=True):
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_lengths_change_and_the_graph_has_no_break(model):
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    for length in (70, 61, 30):
        assert_equal_steps(model, forward, input_ids=IDS[:, :length], use_cache=False)


@pytest.mark.slow
def test_inductor_compiles_it(model):
    forward = torch.compile(model, fullgraph=True)
    for length in (70, 61, 53, 30):
        # The model's own norms compute in float32, which inductor rounds otherwise.
        assert_equal_steps(model, forward, 1e-5, input_ids=IDS[:, :length], use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"attention_mask": PADDED}, {"position_ids": PACKED, "use_cache": False}])
def test_rows_are_those_of_eager(model, arguments):
    real = arguments.get("attention_mask", torch.ones_like(IDS)).bool()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, expected = (f(IDS, **arguments).logits[real] for f in (forward, model))
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()
    packed_alone = model(IDS, use_cache=False).logits[real]
    assert (got - packed_alone).abs().max() > 1e-2


@pytest.mark.slow
def test_a_hybrid_model_compiles():
    model = build("gemma3_text", **PLAIN | WINDOW | MIXED).double()
    LRSA(**SIZES).install(model)
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    for length in (70, 61, 30):
        assert_equal_steps(model, forward, input_ids=IDS[:, :length], use_cache=False)


def operands(**changed):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 45, 8, dtype=torch.float64, generator=generator) for heads in (4, 2, 2))
    arguments = {
        "q": q, "k": k, "v": v, "starts": None, "causal": None, "positions": None, "boundaries": None,
        "sizes": [4, 8, 4, 0], "scorer": "lagkv", "v_weight": 1.0, "seed": 0, "backend": "fill", "chunks_per_fill": 1,
        "layer_idx": 0, "scale": None,
    }  # fmt: skip
    return tuple((arguments | changed).values())


def test_the_operator_keeps_torch_s_rules():
    states = [z.requires_grad_() for z in operands()[:3]]
    torch.library.opcheck(compiled._attend, (*states, *operands()[3:]))


def test_what_eager_refuses_is_refused_in_the_graph():
    with pytest.raises(InputError, match="masked otherwise"):
        compiled._attend(*operands(causal=torch.tensor(False)))
    with pytest.raises(InputError, match="do not rise by one"):
        compiled._attend(*operands(positions=torch.zeros(2, 45, dtype=torch.int64)))
