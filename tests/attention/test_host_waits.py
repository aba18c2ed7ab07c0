"""A forward with its backward reads nothing from the device and sends it nothing, be rows packed or not."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention.flex import block_mask
from lrsa_lightning.attention.layout import TILE, KVLayout, tile_lists
from lrsa_lightning.attention.rows import RowMask
from lrsa_lightning.module import LongContextModule
from tests.attention.host_waits import HostWaits
from tests.conftest import make_model

NUM_TOKENS = 114
META = torch.device("meta")
BOUNDARIES = {"plain": None, "packed": [[0, 70, 73, 114], [0, 114]]}
ARCHITECTURES = ["qwen2", "qwen3", "llama", "mistral", "phi3", "gemma", "gemma3_text", "gpt_neox", "starcoder2"]


def make_module(model_type: str = "qwen2", checkpointing: bool = False, **arguments) -> LongContextModule:
    mode = LRSA(lag_size=8, sink_size=4, **arguments).for_length(NUM_TOKENS)
    module = LongContextModule(mode, from_config={"model_type": model_type}, seq_len=NUM_TOKENS)
    # Names of the dropout of attention weights: what an architecture does not know changes nothing.
    module.model = make_model(model_type, pad_token_id=0, attention_dropout=0.0).train()
    if checkpointing:
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    mode.install(module.model)
    return module


def inputs(boundaries) -> tuple:
    ids = torch.randint(1, 97, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    rows = boundaries or [[0, NUM_TOKENS]] * 2
    starts = torch.stack([torch.tensor(row[:-1]).repeat_interleave(torch.tensor(row).diff()) for row in rows])
    return ids, torch.arange(NUM_TOKENS) - starts, boundaries


def waits(module: LongContextModule, boundaries) -> list[str]:
    given = inputs(boundaries)
    with HostWaits() as host:
        module(*given).square().mean().backward()
    return host.found


@pytest.mark.parametrize("rows", BOUNDARIES)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_architecture_makes_the_host_wait(model_type, rows):
    assert waits(make_module(model_type), BOUNDARIES[rows]) == []


@pytest.mark.parametrize("rows", BOUNDARIES)
@pytest.mark.parametrize(
    "arguments",
    [{"scorer": "random"}, {"scorer": "key_norm"}, {"scorer": "window"}, {"chunks_per_fill": 3}, {"skip_layers": [0]}],
    ids=str,
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_argument_makes_the_host_wait(arguments, rows, checkpointing):
    assert waits(make_module(checkpointing=checkpointing, **arguments), BOUNDARIES[rows]) == []


@pytest.mark.parametrize("query_tile", [64, 128])
def test_tile_lists_are_made_where_they_are_needed(query_tile):
    """On the meta device, whose tensors no host can read: what is copied to it shows."""
    rule = LRSA(lag_size=64, sink_size=16).rule()
    with HostWaits() as host:
        layout = KVLayout.after_sink(rule, 3000, TILE).with_duplicates()
        for tiles in layout.tiles(query_tile, META):
            assert all(z.device == META for z in tile_lists(tiles))
        assert block_mask(layout, META).kv_indices.device == META
    assert host.found == []


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("rows", BOUNDARIES)
@torch.no_grad()
def test_rows_that_are_known_are_those_that_transformers_finds(model_type, rows, monkeypatch):
    module = make_module(model_type)
    ids, positions, boundaries = inputs(BOUNDARIES[rows])
    expected = module.model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    monkeypatch.setattr(RowMask, "__init__", lambda *_, **__: pytest.fail("transformers made a mask"))
    assert torch.equal(module(ids, positions, boundaries), expected)
