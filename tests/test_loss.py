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


def test_no_targets_give_zero_and_zero_gradients():
    hidden, head, labels = inputs()
    loss = linear_cross_entropy(hidden, head, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("num_targets", [0, 1, 24])
def test_the_head_is_called_as_often_as_by_the_richest_process(num_targets):
    hidden, head, labels = inputs()
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    few = labels.flatten().masked_fill(torch.arange(labels.numel()) >= num_targets, IGNORE_INDEX).view_as(labels)
    loss = linear_cross_entropy(hidden, head, few, 5, most_targets=24)
    assert len(calls) == 5
    loss.backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, head, few, 1000))
