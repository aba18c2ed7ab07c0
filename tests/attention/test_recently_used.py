"""Lists that follow from lengths are made once for all layers, and dropped for size, not for number."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill
from lrsa_lightning.attention.flex import block_mask
from lrsa_lightning.attention.layout import TILE, KVLayout
from lrsa_lightning.attention.recently_used import recently_used
from tests.conftest import make_model

# More lengths than a small cache holds: it would drop each before the next layer asks for it.
LENGTHS = range(30, 70)


@pytest.fixture
def built(monkeypatch):
    """The layouts that lists were made for."""
    layouts = []

    def counted(method):
        def make(layout, *arguments, **options):
            layouts.append(layout)
            return method(layout, *arguments, **options)

        return make

    monkeypatch.setattr(KVLayout, "fills", counted(KVLayout.fills))
    monkeypatch.setattr(KVLayout, "tiles", counted(KVLayout.tiles))
    fill._fills.cache_clear()
    block_mask.cache_clear()
    yield layouts
    block_mask.cache_clear()


def packed(lengths) -> tuple[torch.Tensor, list[list[int]]]:
    boundaries = [0, *torch.tensor(list(lengths)).cumsum(0).tolist()]
    ids = torch.randint(0, 97, (1, boundaries[-1]), generator=torch.Generator().manual_seed(0))
    return ids, [boundaries]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fills_are_cut_once_for_all_layers_and_batches(built, checkpointing):
    model = make_model(num_hidden_layers=3, max_position_embeddings=4096).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mode = LRSA(lag_size=8, sink_size=4)
    mode.install(model)

    def step(lengths):
        ids, boundaries = packed(lengths)
        arguments = mode.row_arguments(boundaries, ids.device)
        model.get_decoder()(input_ids=ids, use_cache=False, **arguments).last_hidden_state.sum().backward()

    step(LENGTHS)
    assert sorted(layout.num_queries for layout in built) == [*LENGTHS]
    step(reversed(LENGTHS))
    assert len(built) == len(LENGTHS)
    step([*LENGTHS, 90])
    assert [layout.num_queries for layout in built[len(LENGTHS) :]] == [90]


def test_block_masks_are_listed_once_for_all_layers(built):
    rule = LRSA(lag_size=8, sink_size=4).rule()
    layouts = [KVLayout.of_sequence(rule, length, TILE) for length in LENGTHS]
    masks = [[block_mask(layout, torch.device("cpu")) for layout in layouts] for _ in range(3)]
    assert [layout.num_queries for layout in built] == [*LENGTHS]
    assert all(first is second is third for first, second, third in zip(*masks, strict=True))


def test_the_longest_unused_goes_first_where_there_is_no_room():
    made = []

    @recently_used(size=lambda size, name: size, limit=100)
    def make(size, name):
        made.append(name)
        return name

    for name in "abcde":
        make(20, name)
    assert make(20, "a") == "a"
    make(20, "f")  # drops b
    for name in "acdef":
        make(20, name)
    assert "".join(made) == "abcdef"
    make(20, "b")
    assert "".join(made) == "abcdefb"


def test_what_one_sequence_needs_stays_however_large():
    made = []

    @recently_used(size=lambda name: 1000, limit=100)
    def make(name):
        made.append(name)

    for name in "abcdabcd":
        make(name)
    assert "".join(made) == "abcd"


def test_the_size_of_tile_lists_is_that_of_their_tensors():
    layout = KVLayout.of_sequence(LRSA(lag_size=64).rule(), 3000, TILE)
    mask = block_mask(layout, torch.device("cpu"))
    tensors = [z for name, z in vars(mask).items() if isinstance(z, torch.Tensor) and name.endswith("indices")]
    assert len(tensors) == 4
    assert sum(z.nbytes for z in tensors) == 2 * layout.tile_list_bytes()


def test_what_a_validation_makes_serves_a_backward(built):
    with torch.inference_mode():
        mask = block_mask(KVLayout.of_sequence(LRSA(lag_size=8).rule(), 300, TILE), torch.device("cpu"))
    weight = torch.ones((), requires_grad=True)
    (weight * mask.kv_indices).sum().backward()
    assert weight.grad == mask.kv_indices.sum()
