"""The chunked loss against the loss over full logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lrsa_lightning.loss import IGNORE_INDEX, linear_cross_entropy


def inputs(seed: int = 0):
    torch.manual_seed(seed)
    head = torch.nn.Linear(8, 50, bias=False).double()
    hidden = torch.randn(2, 30, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (2, 30))
    labels[torch.rand(2, 30) < 0.6] = IGNORE_INDEX
    return hidden, head, labels


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_loss_and_gradients_equal_those_of_full_logits(chunk_size):
    hidden, head, labels = inputs()
    expected = cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    expected_gradients = torch.autograd.grad(expected, (hidden, head.weight))
    got = linear_cross_entropy(hidden, head, labels, chunk_size)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, (hidden, head.weight)), expected_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_count_positions():
    hidden, head, labels = inputs()
    weights = torch.rand(2, 30)
    losses = cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="none")
    expected = (losses * weights.flatten().double()).sum()
    torch.testing.assert_close(linear_cross_entropy(hidden, head, labels, 7, weights), expected)


def test_no_more_logits_than_a_chunk_exist_at_a_time():
    hidden, head, labels = inputs()
    rows = []
    head.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    linear_cross_entropy(hidden, head, labels, 5).backward()
    assert max(rows) == 5


def test_the_head_runs_on_label_tokens_alone_and_again_in_the_backward():
    """In long-context tuning they are a percent of all tokens."""
    hidden, head, labels = inputs()
    met = []
    head.register_forward_hook(lambda module, args, output: met.append(args[0]))
    loss = linear_cross_entropy(hidden, head, labels, 5)
    answers = hidden[labels != IGNORE_INDEX]
    assert torch.equal(torch.cat(met), answers)
    met.clear()
    loss.backward()
    assert sum(len(z) for z in met) == len(answers)


def test_no_logits_are_saved_for_the_backward():
    hidden, head, labels = inputs()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z.shape) or z, lambda z: z):
        linear_cross_entropy(hidden, head, labels, 5)
    assert not [shape for shape in saved if len(shape) == 2 and shape[-1] == head.out_features]


def test_losses_of_bfloat16_logits_are_computed_and_summed_in_float32():
    hidden, head, labels = inputs()
    hidden, head, weights = hidden.bfloat16(), head.bfloat16(), torch.rand(2, 30)
    losses = cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="none")
    got = linear_cross_entropy(hidden, head, labels, 7, weights)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (losses * weights.flatten()).sum(), rtol=1e-6, atol=0)


def test_no_labels_give_zero_and_zero_gradients():
    hidden, head, labels = inputs()
    loss = linear_cross_entropy(hidden, head, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("num_labels", [0, 1, 24])
def test_the_head_is_called_as_often_as_on_the_rank_with_the_most_labels(num_labels):
    hidden, head, labels = inputs()
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    few = labels.flatten().masked_fill(torch.arange(labels.numel()) >= num_labels, IGNORE_INDEX).view_as(labels)
    loss = linear_cross_entropy(hidden, head, few, 5, max_labels_per_rank=24)
    assert len(calls) == 5
    loss.backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, head, few, 1000))
