"""A run that a signal ends at any point resumes to the same curve and weights."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from lrsa_lightning.cli import main
from tests.interruptions import SIGNALS, interruption
from tests.processes import on_ranks
from tests.runs import callback, command, losses, metrics
from tests.warm import Run

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def fit(arguments):
    """Runs 8 steps of two micro-batches, with six steps an epoch; returns the exit status."""

    def run(*callbacks: dict, name: str = "x", **options: str) -> int:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=100)])
        base = {**arguments, "trainer.max_steps": "8", "run_name": name, "trainer.callbacks": entries}
        try:
            main(command({**base, **options}))
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def weights(run: str) -> dict[str, torch.Tensor]:
    return torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(first: str, second: str) -> None:
    assert losses(first) == losses(second)
    before, after = weights(first), weights(second)
    assert all(torch.equal(before[key], after[key]) for key in before)


class Struck:
    """A file during whose write a signal comes."""

    def __init__(self, file, number: int):
        self._file, self._number = file, number
        self._writes = 0

    def write(self, content) -> int:
        self._writes += 1
        if self._writes == 3:
            os.kill(os.getpid(), self._number)
            time.sleep(0.2)  # a thread writes; the handler runs in the main one, soon
        return self._file.write(content)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def steps_saved(run: str = "x") -> list[str]:
    return sorted(path.name for path in Path(f"runs/{run}/checkpoints").glob("step=*"))


@pytest.mark.parametrize(("every", "step"), [(100, 8), (4, 4)])
def test_a_signal_does_not_interrupt_the_write_of_a_checkpoint(fit, capsys, monkeypatch, every, step):
    """A stop raised within torch.save would become torch's own error, and the checkpoint would be lost."""
    write = torch.save

    def struck(content, file, *rest) -> None:
        strikes = isinstance(content, dict) and content.get("global_step") == step
        write(content, Struck(file, signal.SIGTERM) if strikes else file, *rest)

    fit(name="whole")
    entries = {"trainer.callbacks": json.dumps([callback("Checkpoints", every_n_steps=every)])}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", struck)
        assert fit(**entries) == 128 + signal.SIGTERM
    assert f"saved in runs/x/checkpoints/step={step}.ckpt" in capsys.readouterr().err
    assert steps_saved() == [f"step={step}.ckpt"]
    assert fit(ckpt_path="last") == 0
    assert_same_run("whole", "x")


@pytest.mark.parametrize(
    ("name", "batch", "step"),
    [("SIGTERM", 6, 3), ("SIGTERM", 7, 4), ("SIGUSR1", 6, 3), ("SIGINT", 11, 6), ("SIGINT", 12, 6), ("SIGTERM", 2, 1)],
)
def test_a_signal_saves_the_last_complete_step(fit, capsys, name, batch, step):
    """Micro-batch 6 is the first half of step 4, micro-batch 11 the last of an epoch."""
    fit(name="whole")
    assert fit(interruption("SignalAtBatch", signal=name, batch=batch)) == 128 + SIGNALS[name]
    assert f"lrsa: stopped by {name}; saved in " in capsys.readouterr().err
    assert steps_saved() == [f"step={step}.ckpt"]
    assert fit(ckpt_path="last") == 0
    assert_same_run("whole", "x")


def test_a_signal_after_the_last_step_is_not_lost(fit, capsys):
    fit(name="whole")
    assert fit(interruption("SignalAfterLastStep", signal="SIGTERM")) == 128 + signal.SIGTERM
    assert "lrsa: stopped by SIGTERM; saved in runs/x/checkpoints/step=8.ckpt" in capsys.readouterr().err
    assert fit(ckpt_path="last") == 0
    assert_same_run("whole", "x")


def test_a_signal_before_the_first_step_saves_nothing(fit, capsys):
    assert fit(interruption("SignalAtBatch", signal="SIGTERM", batch=0)) == 143
    assert "nothing to save yet" in capsys.readouterr().err
    assert not Path("runs/x/checkpoints").exists()


def test_a_signal_interrupts_a_check_after_a_step(fit):
    fit(name="whole")
    assert fit(interruption("LongCheck", signal="SIGTERM", step=3)) == 143
    assert steps_saved() == ["step=3.ckpt"]
    assert fit(ckpt_path="last") == 0
    assert_same_run("whole", "x")


@pytest.mark.parametrize("interval", [None, 4], ids=["end of an epoch", "within an epoch"])
def test_a_signal_interrupts_a_validation(fit, train_file, interval):
    """The resumed run has the same further steps and validations."""
    options = {"data.val_files": str(train_file)} | ({"trainer.val_check_interval": str(interval)} if interval else {})
    fit(name="whole", **options)
    assert fit(interruption("SignalInValidation", signal="SIGTERM", batch=1), **options) == 143
    assert steps_saved() == ["step=2.ckpt" if interval else "step=6.ckpt"]
    assert fit(ckpt_path="last", **options) == 0
    assert_same_run("whole", "x")
    scores = [[row for row in metrics(run) if "val/loss" in row] for run in ("whole", "x")]
    assert scores[1] == scores[0][1:]


def test_a_second_interrupt_ends_at_once(fit):
    twice = [interruption("SignalAtBatch", signal="SIGINT", batch=4)] * 2
    assert fit(*twice) == 1  # Lightning's status of a keyboard interrupt
    assert steps_saved() == []


def test_other_errors_save_nothing(fit):
    """The step may be incomplete."""
    values = {"class_path": "tests.interruptions.LongCheck", "init_args": {"signal": "SIGUSR1", "step": 3}}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(AssertionError, match="the check went on"):
            fit({**values, "init_args": {"signal": "SIGCONT", "step": 3}})
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert steps_saved() == []


@pytest.fixture
def fit_on_two(arguments):
    """Runs 8 steps of two micro-batches over two processes; returns their exit statuses."""

    def run(*callbacks: dict, **options: str) -> list[int]:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=100)])
        steps = {"trainer.max_steps": "8", "data.micro_batch_size": "1", "trainer.callbacks": entries}
        ended = on_ranks(*[{**arguments, **steps, **options}] * 2)
        assert "Traceback" not in ended[0].err + ended[1].err
        return [process.status for process in ended]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "step"), [(5, 3), (6, 4)])
def test_all_processes_stop_at_the_same_step_when_one_gets_a_signal(fit, fit_on_two, batch, step):
    fit(name="whole")
    assert fit_on_two(interruption("SignalAtBatch", signal="SIGUSR1", batch=batch, rank=1)) == [138, 0]
    assert steps_saved() == [f"step={step}.ckpt"]
    assert fit_on_two(ckpt_path="last") == [0, 0]
    assert losses("x") == pytest.approx(losses("whole"), abs=1e-5)


@pytest.mark.slow
def test_a_signal_interrupts_checks_of_several_processes(fit_on_two, train_file):
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], num_samples=16, every_n_steps=3)
    signal = interruption("SignalAfterStep", signal="SIGTERM", step=3, rank=1)
    assert fit_on_two(signal, ruler) == [143, 0]
    assert steps_saved() == ["step=3.ckpt"]
    assert [path.name for path in Path("runs/x/ruler").glob("*.jsonl")] == ["step-000000.jsonl"]
    validation = {"data.val_files": str(train_file), "trainer.val_check_interval": "4", "run_name": "y"}
    assert fit_on_two(interruption("SignalInValidation", signal="SIGTERM", batch=1, rank=1), **validation) == [143, 0]
    assert steps_saved("y") == ["step=2.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_the_whole_job_does_not_kill_the_workers_first(fit, arguments, name):
    """Schedulers and terminals signal every process, the data loader's included."""
    fit(name="whole")
    entries = [interruption("SignalAtBatch", signal=name, batch=6, group=True), callback("Checkpoints")]
    options = {"trainer.max_steps": "8", "data.num_workers": "1", "trainer.callbacks": json.dumps(entries)}
    ended = Run(command({**arguments, **options}), session=True).wait(timeout=60)
    assert ended.status == 128 + SIGNALS[name], ended.err
    assert fit(ckpt_path="last") == 0
    assert_same_run("whole", "x")
