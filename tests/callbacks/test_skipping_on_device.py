"""Steps that the fused optimizer skips without the host, as on CUDA: the outcome is that of a host that reads at once.

The CPU's fused AdamW takes the same tensor as CUDA's.
"""

import json
from functools import partial

import pytest
import torch

from lrsa_lightning.callbacks import non_finite_loss
from lrsa_lightning.cli import main
from lrsa_lightning.optimizer.settings import OptimizerSettings
from tests.interruptions import interruption
from tests.runs import callback, command, losses, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
READ_AT_THE_END = {"trainer.log_every_n_steps": "100"}


@pytest.fixture
def fit(arguments, monkeypatch):
    """Exit status of a run of 8 steps with a fused optimizer; an epoch has six steps of two micro-batches."""
    make = OptimizerSettings.make
    monkeypatch.setattr(OptimizerSettings, "make", lambda *args, **_: make(*args[:5], fused=True))
    monkeypatch.setattr("lrsa_lightning.step_log.EARLY_STEPS", (1,))

    def run(*callbacks: dict, on_device: bool, name: str, every: int = 100, **options: str) -> int:
        monkeypatch.setattr(non_finite_loss, "skips_on_device", lambda *_: on_device)
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=every)])
        base = {**arguments, **READ_AT_THE_END, "trainer.max_steps": "8", "trainer.callbacks": entries}
        try:
            main(command({**base, "run_name": name, **options}))
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def saved(run: str, step: int) -> dict:
    return torch.load(f"runs/{run}/checkpoints/step={step}.ckpt", weights_only=True)


def assert_same(first, second) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def rows(run: str) -> list[dict]:
    return [{key: value for key, value in row.items() if value == value} for row in metrics(run)]


@pytest.mark.parametrize("poison", ["PoisonedSamples", "PoisonedGradient"])
@pytest.mark.parametrize(("batch", "step"), [(3, 1), (7, 3), (11, 5), (13, 6)])
def test_steps_from_the_first_spoiled_one_on_are_taken_back(fit, capsys, poison, batch, step):
    """Micro-batch 11 is the last of an epoch, 13 in the first step of the next one."""
    where = {"batches": [batch]} if poison == "PoisonedSamples" else {"batch": batch}
    stop = partial(fit, interruption(poison, **where), callback("NonFiniteLoss"))
    assert stop(on_device=False, name="at-once") == 3
    message = capsys.readouterr().err.replace("at-once", "later")
    assert stop(on_device=True, name="later") == 3
    assert f"stopped before step {step + 1}: the " in message
    assert capsys.readouterr().err == message
    assert_same(saved("at-once", step), saved("later", step))
    assert rows("at-once") == rows("later")
    assert len(rows("later")) == step
    assert fit(callback("NonFiniteLoss"), on_device=True, name="later", ckpt_path="last") == 0
    assert fit(on_device=False, name="whole") == 0
    assert losses("later") == losses("whole")
    assert_same(saved("later", 8)["state_dict"], saved("whole", 8)["state_dict"])


def test_a_checkpoint_is_never_written_beyond_a_spoiled_step(fit):
    """Its step 4 comes after the spoiled step 2, and the host does not know of it yet."""
    spoiled = interruption("PoisonedSamples", batches=[3])
    assert fit(spoiled, callback("NonFiniteLoss"), on_device=True, name="x", every=4) == 3
    assert fit(on_device=False, name="whole", every=1) == 0
    assert_same(saved("x", 1)["state_dict"], saved("whole", 1)["state_dict"])
    assert [row["step"] for row in rows("x")] == [1]


def test_a_signal_that_comes_first_saves_the_step_before_the_spoiled_one(fit, caplog):
    spoiled, signal = (
        interruption("PoisonedSamples", batches=[3]),
        interruption("SignalAtBatch", signal="SIGTERM", batch=6),
    )
    assert fit(spoiled, signal, callback("NonFiniteLoss"), on_device=True, name="x") == 143
    assert "stopped before step 2: the loss is NaN or infinite on rank 0" in caplog.text
    assert fit(callback("NonFiniteLoss"), on_device=True, name="x", ckpt_path="last") == 0
    assert fit(on_device=False, name="whole") == 0
    assert losses("x") == losses("whole")


def test_skipped_steps_are_skipped_and_counted(fit, caplog):
    skip = partial(fit, interruption("PoisonedSamples", batches=[2, 12]), callback("NonFiniteLoss", policy="skip"))
    assert skip(on_device=False, name="at-once") == 0
    said = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    caplog.clear()
    assert skip(on_device=True, name="later") == 0
    assert [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()] == said
    assert len(said) == 2
    assert_same(saved("at-once", 8), saved("later", 8))
    assert rows("at-once") == rows("later")
    assert [row["train/skipped_steps"] for row in rows("later")] == [0, 1, 1, 1, 1, 1, 2, 2]


def test_too_many_skipped_steps_in_a_row_are_taken_back_from_the_last_on(fit, capsys):
    """Good steps between bad ones break the row; no step is taken after the last of them."""
    poison = interruption("PoisonedSamples", batches=[0, 4, 6, 8])
    stop = partial(fit, poison, callback("NonFiniteLoss", policy="skip", most=2))
    assert stop(on_device=False, name="at-once") == 3
    message = capsys.readouterr().err.replace("at-once", "later")
    assert stop(on_device=True, name="later") == 3
    assert "before step 5: the loss is NaN or infinite on rank 0, the last of 3 such steps" in message
    assert capsys.readouterr().err == message
    assert_same(saved("at-once", 4), saved("later", 4))
    assert rows("at-once") == rows("later")
