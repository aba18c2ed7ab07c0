"""A packed row equals its samples run apart: executions, whole models, outputs and gradients."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import and_masks, causal_mask_function, or_masks, sliding_window_overlay
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.packing import sample_by_sample
from lrsa_lightning.attention.rows import RowMask, find_rows
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

LENGTHS = [[70, 3, 41], [114]]
BOUNDARIES = [[0, 70, 73, 114], [0, 114]]
MODES = {
    "lrsa": LRSA(lag_size=8, sink_size=4),
    "several chunks a fill": LRSA(lag_size=8, sink_size=4, chunks_per_fill=3),
    "naive": LRSA(lag_size=8, sink_size=4, backend="naive"),
    "skipped layer": LRSA(lag_size=8, sink_size=4, skip_layers=[0]),
    "vanilla": Vanilla(),
}


@pytest.mark.parametrize("execution", [naive, fill])
def test_executions(execution):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 114, 16, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    mode = MODES["lrsa"]
    packed = execution.lrsa_attention(q, k, v, mode, cu_seqlens=BOUNDARIES)
    weights = torch.randn_like(packed)
    gradients = torch.autograd.grad(packed, (q, k, v), weights)
    for row, boundaries in enumerate(BOUNDARIES):
        for start, end in pairwise(boundaries):
            parts = [z[row : row + 1, :, start:end].detach().requires_grad_() for z in (q, k, v)]
            out = execution.lrsa_attention(*parts, mode)
            torch.testing.assert_close(packed[row : row + 1, :, start:end], out, rtol=0, atol=1e-12)
            expected = torch.autograd.grad(out, parts, weights[row : row + 1, :, start:end])
            for got, reference in zip(gradients, expected, strict=True):
                torch.testing.assert_close(got[row : row + 1, :, start:end], reference, rtol=0, atol=1e-12)


def test_samples_are_split_and_joined_in_one_copy():
    """A slice of each sample would fill a complete row with zeros in the backward, a join of each row copy again."""

    @sample_by_sample
    def execution(q, k, v, mode, scale):
        return q + k + v

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function._schema.name.removeprefix("aten::"))
            return function(*args, **(kwargs or {}))

    # As a projection leaves them: a token's heads side by side.
    states = [torch.randn(2, 114, 4, 16).transpose(1, 2).requires_grad_() for _ in range(3)]
    names = []
    with Recorder():
        out = execution(*states, None, cu_seqlens=BOUNDARIES)
    assert out.transpose(1, 2).is_contiguous()
    assert names.count("cat") == 1
    assert not {"clone", "copy_", "_to_copy"} & {*names}
    names = []
    with Recorder():
        out.backward(torch.ones_like(out))
    assert names.count("cat") == 3
    assert not {"new_zeros", "zeros", "slice_backward", "select_backward", "clone", "copy_"} & {*names}
    assert all(torch.equal(z.grad, torch.ones_like(z)) for z in states)


def test_flash_attention_gets_the_samples_of_all_rows():
    """By itself it looks for them in a batch of one row alone."""
    arguments = Vanilla("flash_attention_2").row_arguments(BOUNDARIES, torch.device("cpu"))
    assert arguments.pop("cu_seqlens") == BOUNDARIES
    assert arguments.keys() <= FlashAttentionKwargs.__annotations__.keys()
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert arguments[name].dtype == torch.int32
        assert arguments[name].tolist() == [0, 70, 73, 114, 228]
    assert arguments["max_length_q"] == arguments["max_length_k"] == 114
    assert Vanilla("flash_attention_2").row_arguments(None, torch.device("cpu")) == {}
    assert Vanilla().row_arguments(BOUNDARIES, torch.device("cpu")) == {"cu_seqlens": BOUNDARIES}


@pytest.mark.parametrize("wrong", [[0, 50], [0, 60, 50, 114], [1, 114], [[0, 114]] * 3], ids=str)
def test_wrong_boundaries_are_an_error(wrong):
    q, k, v = (torch.randn(1, h, 114, 16) for h in (4, 2, 2))
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 114"):
        fill.lrsa_attention(q, k, v, MODES["lrsa"], cu_seqlens=wrong)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_models(name, checkpointing):
    """The model only gets positions that restart."""
    model = make_model(attention_dropout=0.0).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    MODES[name].install(model)
    ids = torch.randint(0, 97, (2, 114), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row, boundaries in enumerate(BOUNDARIES):
        for start, end in pairwise(boundaries):
            apart = model(ids[row : row + 1, start:end], use_cache=False).logits
            torch.testing.assert_close(packed[row, start:end], apart[0], rtol=0, atol=1e-4)
            (apart[0] * weights[row, start:end]).sum().backward()
    for got, parameter in zip(gradients, model.parameters(), strict=True):
        assert (got - parameter.grad).norm() < 1e-4 * parameter.grad.norm() + 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["lrsa", "several chunks a fill", "naive", "skipped layer"])
def test_cu_seqlens_reach_the_attention_and_nothing_is_looked_for(name, checkpointing, monkeypatch):
    """The same losses and gradients as by positions that restart, without a look at the mask."""
    ids = torch.randint(0, 97, (2, 114), generator=torch.Generator().manual_seed(0))
    outcomes = []
    for arguments in ({}, {"cu_seqlens": BOUNDARIES}):
        model = make_model(attention_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        MODES[name].install(model)
        if arguments:
            monkeypatch.setattr(RowMask, "rows", property(lambda mask: pytest.fail("looked at the mask")))
        loss = model(ids, position_ids=POSITIONS, use_cache=False, **arguments).logits.square().mean()
        loss.backward()
        outcomes.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *outcomes))


POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_cache": True},
        {"use_cache": False, "attention_mask": torch.ones(2, 114, dtype=torch.long)},
        {"use_cache": True, "attention_mask": torch.ones(2, 114, dtype=torch.long)},
    ],
    ids=["cache", "mask", "both"],
)
@pytest.mark.parametrize("backend", ["fill", "naive"])
@torch.no_grad()
def test_boundaries_that_transformers_does_not_look_for_are_refused(arguments, backend):
    """With a mask or a cache, transformers does not find packed rows by positions that restart."""
    model = make_model()
    mode = LRSA(lag_size=8, sink_size=4, backend=backend)
    mode.install(model)
    ids = torch.randint(0, 97, (2, 114), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="position_ids do not rise by one"):
        model(ids, position_ids=POSITIONS, **arguments)
    with pytest.raises(InputError, match="position_ids do not rise by one"):
        model(ids, position_ids=POSITIONS, past_key_values=mode.make_cache(model.config))


@torch.no_grad()
def test_a_row_of_one_sample_may_have_both():
    model, mode = make_model(), LRSA(lag_size=8, sink_size=4)
    mode.install(model)
    ids = torch.randint(0, 97, (2, 114), generator=torch.Generator().manual_seed(0))
    expected = model(ids, use_cache=False).logits
    got = model(ids, position_ids=torch.arange(114)[None], attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(got, expected)


OTHERS = {
    "window": and_masks(causal_mask_function, sliding_window_overlay(8)),
    "last_token": and_masks(causal_mask_function, lambda batch, head, query, key: (query < 29) | (key > 20)),
    "later tokens": or_masks(causal_mask_function, lambda batch, head, query, key: (query < 5) & (key < 5)),
}


@pytest.mark.parametrize("what", OTHERS)
@torch.no_grad()
def test_another_mask_than_causal_is_refused(what):
    model = make_model()
    LRSA(lag_size=8, sink_size=4).install(model)
    rows = find_rows(mask_function=OTHERS[what], kv_length=30, q_length=30, batch_size=1)
    ids = torch.zeros(1, 30, dtype=torch.long)
    with pytest.raises(InputError, match="masked otherwise"):
        model.get_decoder()(input_ids=ids, attention_mask={"full_attention": rows}, use_cache=False)


@torch.no_grad()
def test_a_mask_of_the_users_own_is_refused():
    model = make_model()
    LRSA(lag_size=8, sink_size=4).install(model)
    with pytest.raises(InputError, match="makes its own mask"):
        model(torch.zeros(1, 30, dtype=torch.long), attention_mask=torch.ones(1, 1, 30, 30, dtype=torch.bool))
