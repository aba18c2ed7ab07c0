"""Our `generate` against one row at a time and against transformers' own."""

import pytest
import torch

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

MODES = [
    Vanilla(),
    LRSA(lag_size=8, sink_size=4),
    LRSA(lag_size=8, sink_size=4, retention_ratio=0.25, skip_layers=[0]),
]
LENGTHS = [3, 30, 61, 17, 61, 12]
IDS = torch.randint(0, 97, (6, 61), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("prefill_chunk_size", [7, 16, 100])
def test_rows_of_unequal_length_equal_each_row_alone(mode, prefill_chunk_size):
    model = make_model()
    together = generate(model, IDS, mode, 40, lengths=LENGTHS, prefill_chunk_size=prefill_chunk_size)
    for row, length in enumerate(LENGTHS):
        alone = generate(model, IDS[row : row + 1, :length], mode, 40)
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_transformers_generate_gives_the_same_tokens(mode):
    model = make_model()
    ours = generate(model, IDS[:2], mode, 40)
    with mode.installed(model):
        theirs = model.generate(
            IDS[:2],
            attention_mask=torch.ones_like(IDS[:2]),
            past_key_values=mode.make_cache(model.config),
            max_new_tokens=40,
            do_sample=False,
            pad_token_id=0,
        )
    assert torch.equal(theirs[:, 61:], ours)


def test_beam_search_of_transformers_equals_its_own_without_cache():
    model, mode = make_model(), MODES[1]
    arguments = {
        "attention_mask": torch.ones_like(IDS[:2]),
        "max_new_tokens": 20,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
    }
    with mode.installed(model):
        cached = model.generate(IDS[:2], past_key_values=mode.make_cache(model.config), **arguments)
        recomputed = model.generate(IDS[:2], use_cache=False, **arguments)
    assert torch.equal(cached, recomputed)


def test_rows_end_at_the_end_token():
    model = make_model()
    free = generate(model, IDS, MODES[1], 20)
    end = int(free[2, 4])
    first = free[2].tolist().index(end)
    ended = generate(model, IDS, MODES[1], 20, eos_token_id=end)
    assert ended[2, : first + 1].tolist() == free[2, : first + 1].tolist()
    assert (ended[2, first:] == end).all()


def test_the_installed_mode_is_the_same_afterwards():
    model = make_model()
    MODES[1].install(model)
    before = model(IDS, use_cache=False).logits
    generate(model, IDS, Vanilla(), 3)
    assert torch.equal(model(IDS, use_cache=False).logits, before)


@pytest.mark.parametrize("lengths", [[61], [0] * 6, [62] * 6])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        generate(make_model(), IDS, Vanilla(), 3, lengths=lengths)


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_padded_on_either_side_by_a_mask_equal_each_row_alone(mode, side):
    model = make_model()
    padded, mask = torch.zeros_like(IDS), torch.zeros_like(IDS)
    for row, length in enumerate(LENGTHS):
        place = slice(61 - length, 61) if side == "left" else slice(0, length)
        padded[row, place], mask[row, place] = IDS[row, :length], 1
    got = generate(model, padded, mode, 20, attention_mask=mask)
    assert torch.equal(got, generate(model, IDS, mode, 20, lengths=LENGTHS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size"),
        ({"lengths": [2.5] * 6}, "lengths"),
        ({"lengths": [[1, 2]] * 6}, "lengths"),
        ({"attention_mask": torch.ones(6, 60)}, "one shape"),
        ({"attention_mask": torch.zeros_like(IDS)}, "lengths"),
        ({"attention_mask": (torch.arange(61) % 2).expand(6, -1)}, "holes"),
        ({"attention_mask": torch.ones_like(IDS), "lengths": LENGTHS}, "not both"),
        ({"input_ids": IDS[0]}, "input_ids"),
        ({"input_ids": IDS[:, :0]}, "input_ids"),
        ({"input_ids": IDS.float()}, "input_ids"),
        ({"mode": "lrsa"}, "attention mode"),
        ({"mode": LRSA(skip_layers=[2])}, "skip_layers"),
    ],
    ids=str,
)
def test_what_cannot_be_generated_is_one_clear_line(arguments, message):
    model = make_model()
    with pytest.raises(InputError, match=message) as caught:
        generate(model, **{"input_ids": IDS, "mode": MODES[1], **arguments})
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "sdpa"
