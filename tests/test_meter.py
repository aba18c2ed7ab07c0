"""The sums over an optimizer step, and the tokens of a run."""

import torch

from lrsa_lightning.loss import IGNORE_INDEX
from lrsa_lightning.meter import StepMeter, count_tokens


def micro_batch(num_tokens: int, num_labels: int) -> dict:
    labels = torch.full((1, 8), IGNORE_INDEX)
    labels[0, :num_labels] = 7
    return {"labels": labels, "lengths": torch.tensor([num_tokens]), "max_labels_per_rank": num_labels}


def step_of(meter: StepMeter, *micro_batches: tuple[int, int]):
    """A step of micro-batches whose loss is 1, on two ranks that read the same."""
    for tokens, labels in micro_batches:
        meter.add(micro_batch(tokens, labels), torch.tensor(1.0), torch.tensor(10.0))
    return meter.end_step(lambda counts: 2 * counts)


def test_tokens_are_counted_without_padding():
    labels = torch.full((2, 6), IGNORE_INDEX)
    labels[0, 1], labels[0, 4], labels[1, 5] = 7, 7, 7
    assert count_tokens({"labels": labels, "lengths": torch.tensor([5, 6])}).tolist() == [5 + 6, 3]


def test_a_step_adds_up_its_micro_batches():
    step = step_of(StepMeter(), (6, 2), (5, 3))
    assert step.loss == 2 * 2
    assert step.label_loss == 2 * (10 + 10) / (2 * (2 + 3))
    assert step.seen_tokens.tolist() == [2 * (6 + 5), 2 * (2 + 3)]


def test_the_loss_is_that_of_label_tokens_where_no_other_sum_is_given():
    meter = StepMeter()
    meter.add(micro_batch(6, 2), torch.tensor(1.5), None)
    step = meter.end_step(lambda counts: counts)
    assert step.loss == step.label_loss == 1.5


def test_a_meter_knows_where_a_step_begins_and_whether_it_has_labels():
    meter = StepMeter()
    assert meter.is_between_steps
    assert not meter.has_labels
    meter.add(micro_batch(6, 0), torch.tensor(1.0), None)
    assert not meter.is_between_steps
    assert not meter.has_labels
    meter.add(micro_batch(6, 1), torch.tensor(1.0), None)
    assert meter.has_labels
    meter.end_step(lambda counts: counts)
    assert meter.is_between_steps
    assert not meter.has_labels


def test_tokens_go_on_from_a_checkpoint_and_a_step_can_be_taken_back():
    meter = StepMeter()
    assert meter.seen_tokens == (0, 0)
    meter.load([100, 10])
    assert meter.seen_tokens == (100, 10)
    for _ in range(2):
        step_of(meter, (6, 2))
        assert meter.seen_tokens == (112, 14)
        meter.take_back_to(meter.seen_before)
        assert meter.seen_tokens == (100, 10)
    step_of(meter, (6, 2))
    step_of(meter, (1, 1))
    before = meter.seen_before
    step_of(meter, (3, 1))
    meter.take_back_to(before)
    assert meter.seen_tokens == (112, 14)
