"""The learning rate over a run, against transformers' schedules, which begin one step earlier, and by hand."""

import math

import pytest
import torch
from transformers import get_scheduler

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.schedule import ScheduleSettings
from tests.runs import command, metrics, refusal

LR, WARMUP, TOTAL = 0.01, 3, 13


def _rates(**settings) -> list[float]:
    factor = ScheduleSettings(**settings).factor(LR, WARMUP, TOTAL)
    return [LR * factor(step) for step in range(TOTAL)]


def _of_transformers(name: str, **settings) -> list[float]:
    """The rates after its warm-up, whose last step has the peak."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], LR)
    scheduler = get_scheduler(name, optimizer, WARMUP, TOTAL, scheduler_specific_kwargs=settings)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates[WARMUP:]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({}, ("cosine", {})),
        ({"name": "linear"}, ("linear", {})),
        ({"name": "constant"}, ("constant_with_warmup", {})),
        ({"min_lr": 0.002}, ("cosine_with_min_lr", {"min_lr": 0.002})),
        ({"min_lr_rate": 0.3}, ("cosine_with_min_lr", {"min_lr_rate": 0.3})),
        (
            {"name": "wsd", "decay_steps": 4, "min_lr_rate": 0.1},
            ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 0.1, "decay_type": "linear"}),
        ),
    ],
    ids=str,
)
def test_after_the_warmup_the_rates_are_those_of_transformers(own, theirs):
    name, settings = theirs
    rates = _rates(**own)
    assert rates[:WARMUP] == pytest.approx([LR * (step + 1) / WARMUP for step in range(WARMUP)])
    assert rates[WARMUP:] == pytest.approx(_of_transformers(name, **settings))


def test_a_fraction_of_the_steps_is_as_many_steps():
    assert _rates(name="wsd", decay_steps=0.4) == pytest.approx(_rates(name="wsd", decay_steps=4))


def test_the_default_is_the_cosine_bit_for_bit():
    factor = ScheduleSettings().factor(LR, WARMUP, TOTAL)
    for step in range(WARMUP, TOTAL + 2):
        assert factor(step) == 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (TOTAL - WARMUP))))


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_a_run_without_an_end_stays_at_the_peak(name):
    factor = ScheduleSettings(name).factor(LR, 0, math.inf)
    assert [factor(step) for step in (0, 10**6)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"min_lr": 0.1}, "min_lr 0.1 is above model.lr 0.01"),
        ({"min_lr": 0.001, "min_lr_rate": 0.1}, "give one of them"),
        ({"name": "constant", "min_lr": 0.001}, "constant never falls"),
    ],
)
def test_contradictions_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        ScheduleSettings(**wrong).check(LR)


@pytest.mark.usefixtures("in_tmp_path")
def test_a_run_takes_the_schedule_and_a_resume_may_change_it(arguments, capsys):
    linear = {"model.scheduler.name": "linear", "model.scheduler.min_lr_rate": "0.5", "trainer.max_steps": "4"}
    main(command(arguments | linear))
    assert [row["train/lr"] for row in metrics()] == pytest.approx([0.01, 0.00875, 0.0075, 0.00625])
    wrong = arguments | {"model.scheduler.name": "cubic"}
    assert "model.scheduler.name" in refusal(capsys, command(wrong | {"run_name": "y"}))
