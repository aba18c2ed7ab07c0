"""Whether LRSA is exact in a tiny model, against its own eager attention, or refuses to be installed."""

import torch
from transformers import DynamicCache

from lrsa_lightning import LRSA
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.errors import InputError
from tests.attention import architectures

SIZES = {"lag_size": 8, "sink_size": 4}
IDS = torch.randint(2, architectures.VOCABULARY, (2, 70), generator=torch.Generator().manual_seed(0))
PIECES = [29, 1, 1, 39]


def hidden(model, ids=IDS, **arguments):
    out = model.get_decoder()(input_ids=ids, **arguments)
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


def deviation(got, expected) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def through_cache(model, cache):
    pieces = [hidden(model, piece, past_key_values=cache, use_cache=True) for piece in IDS.split(PIECES, dim=1)]
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def refusal(model) -> str | None:
    """Why LRSA does not take the model; None where it does, after its executions were compared.

    Raises:
        AssertionError: it takes the model, and is wrong.
    """
    eager = hidden(model, use_cache=False)
    tolerance = 1e-4
    try:
        LRSA(**SIZES, retention_ratio=1.0).install(model)
    except InputError as error:
        assert torch.equal(hidden(model, use_cache=False), eager)
        return str(error)
    assert deviation(hidden(model, use_cache=False), eager) < tolerance
    mode = LRSA(**SIZES)
    mode.install(model)
    trained = hidden(model, use_cache=False)
    assert deviation(trained, eager) > 1e-2
    known = mode.row_arguments(None, IDS.device) | {"position_ids": torch.arange(IDS.shape[1]).expand_as(IDS)}
    assert torch.equal(hidden(model, use_cache=False, **known), trained)
    cached = through_cache(model, mode.make_cache(model.config))
    if kept_layers(model.get_decoder().config):
        tolerance = max(tolerance, 3 * _own_deviation(model, eager))
    assert deviation(cached, trained) < tolerance
    return None


def _own_deviation(model, eager) -> float:
    """How far the model's own cache is from its own forward: linear attention computes by chunks of 64 tokens."""
    model.set_attn_implementation("eager")
    own = deviation(through_cache(model, DynamicCache(config=model.config)), eager)
    assert own < 1e-3, "the model's own cache is no reference"
    return own
