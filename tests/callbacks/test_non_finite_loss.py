"""A NaN on one device stops all devices before the weights change, or all of them skip the step."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import DeepSpeedPrecision

from lrsa_lightning.callbacks import NonFiniteLoss
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from tests.interruptions import interruption
from tests.processes import on_ranks
from tests.runs import callback, command, losses, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def options(arguments):
    """8 steps of two micro-batches, of which an epoch has six steps."""

    def make(*callbacks: dict, every: int = 100, name: str = "x", **options: str) -> dict[str, str]:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=every)])
        base = {**arguments, "trainer.max_steps": "8", "run_name": name, "trainer.callbacks": entries}
        return {**base, **options}

    return make


@pytest.fixture
def fit(options):
    """Exit status of such a run."""

    def run(*callbacks: dict, **settings) -> int:
        try:
            main(command(options(*callbacks, **settings)))
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def weights(step: int, run: str = "x") -> dict[str, torch.Tensor]:
    return torch.load(f"runs/{run}/checkpoints/step={step}.ckpt", weights_only=True)["state_dict"]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("poison", ["PoisonedSamples", "PoisonedGradient"])
@pytest.mark.parametrize(("batch", "step"), [(6, 3), (7, 3), (11, 5), (13, 6)])
def test_a_run_stops_before_the_step_and_goes_on_from_there(fit, capsys, poison, batch, step):
    """Micro-batch 11 is the last of an epoch, 13 in the first step of the next one."""
    fit(name="whole", every=step)
    where = {"batches": [batch]} if poison == "PoisonedSamples" else {"batch": batch}
    assert fit(interruption(poison, **where), callback("NonFiniteLoss")) == 3
    error = capsys.readouterr().err
    what = "loss" if poison == "PoisonedSamples" else "gradient"
    assert f"lrsa: stopped before step {step + 1}: the {what} is NaN or infinite on rank 0; saved in " in error
    assert "policy: skip" in error
    assert "Traceback" not in error
    assert equal(weights(step), weights(step, "whole"))
    assert fit(callback("NonFiniteLoss"), ckpt_path="last") == 0
    assert losses() == losses("whole")
    assert [row["train/tokens"] for row in metrics()] == [row["train/tokens"] for row in metrics("whole")]
    assert equal(weights(8), weights(8, "whole"))


def test_a_skipped_step_changes_no_weight_and_is_counted(fit):
    assert fit(interruption("PoisonedSamples", batches=[6]), callback("NonFiniteLoss", policy="skip"), every=1) == 0
    assert equal(weights(3), weights(4))
    assert not equal(weights(4), weights(5))
    skipped = [row["train/skipped_steps"] for row in metrics() if "train/skipped_steps" in row]
    assert skipped == [0, 0, 0, 1, 1, 1, 1, 1]
    fit(name="whole")
    assert [row["train/lr"] for row in metrics()] == [row["train/lr"] for row in metrics("whole")]


def test_too_many_skipped_steps_in_a_row_stop_the_run(fit, capsys):
    """Good steps between bad ones break the row. A resumed run goes on counting skipped steps."""
    poison = interruption("PoisonedSamples", batches=[0, 4, 6, 8])
    assert fit(poison, callback("NonFiniteLoss", policy="skip", most=2)) == 3
    assert "before step 5: the loss is NaN or infinite on rank 0, the last of 3 such steps" in capsys.readouterr().err
    assert fit(callback("NonFiniteLoss", policy="skip"), ckpt_path="last") == 0
    assert metrics()[-1]["train/skipped_steps"] == 3
    assert sorted(losses()) == [*range(1, 9)]


def test_skipping_is_refused_under_deepspeed():
    trainer = SimpleNamespace(precision_plugin=DeepSpeedPrecision("bf16-mixed"))
    NonFiniteLoss("stop").setup(trainer, None, "fit")
    with pytest.raises(InputError, match=r"cannot skip steps under DeepSpeed, .* set its policy"):
        NonFiniteLoss("skip").setup(trainer, None, "fit")


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["PoisonedSamples", "PoisonedGradient"])
def test_all_devices_stop_before_the_step_that_one_spoils(fit, options, poison):
    fit(name="whole")
    where = {"batches": [6]} if poison == "PoisonedSamples" else {"batch": 7}
    poisoned = [interruption(poison, rank=1, **where), callback("NonFiniteLoss")]
    ended = on_ranks(*[options(*poisoned, **{"data.micro_batch_size": "1"})] * 2)
    assert [process.status for process in ended] == [3, 0]
    assert "is NaN or infinite on rank 1; saved in runs/x/checkpoints/step=3.ckpt" in ended[0].err
    assert fit(callback("NonFiniteLoss"), ckpt_path="last") == 0
    assert losses() == pytest.approx(losses("whole"), abs=1e-5)


@pytest.mark.slow
def test_all_devices_skip_the_step_that_one_spoils(options):
    poisoned = [interruption("PoisonedSamples", batches=[6], rank=1), callback("NonFiniteLoss", policy="skip")]
    ended = on_ranks(*[options(*poisoned, every=1, **{"data.micro_batch_size": "1"})] * 2)
    assert [process.status for process in ended] == [0, 0]
    assert equal(weights(3), weights(4))
    assert not equal(weights(4), weights(5))
    assert metrics()[-1]["train/skipped_steps"] == 1
