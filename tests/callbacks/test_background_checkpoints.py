"""Training goes on while a checkpoint is written, and the file holds the state of its step."""

import json
import signal
from pathlib import Path

import pytest
import torch

from lrsa_lightning.checkpoints import atomic_files, host_copy
from lrsa_lightning.cli import main
from tests.held_writes import HeldWrite
from tests.interruptions import interruption
from tests.runs import callback, command, losses, metrics, same
from tests.warm import Run

pytestmark = pytest.mark.usefixtures("in_tmp_path")
FOLDER = Path("runs/x/checkpoints")


def entries(*callbacks: dict, **settings) -> dict[str, str]:
    return {"trainer.callbacks": json.dumps([*callbacks, callback("Checkpoints", **settings)])}


@pytest.fixture
def fit(arguments, monkeypatch):
    """Runs six steps; returns the exit status."""

    def run(*callbacks: dict, name: str = "x", options: dict | None = None, **settings) -> int:
        HeldWrite.events.clear()
        monkeypatch.setattr(atomic_files, "write_synced", WRITE)
        try:
            main(command({**arguments, "run_name": name, **entries(*callbacks, **settings), **(options or {})}))
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


WRITE = atomic_files.write_synced


def held(step: int, until: int, then: str = "complete", linger: bool = False) -> dict:
    arguments = {"step": step, "until": until, "then": then, "linger": linger}
    return {"class_path": "tests.held_writes.HeldWrite", "init_args": arguments}


def between(first: str, last: str) -> list[str]:
    events = HeldWrite.events
    return events[events.index(first) + 1 : events.index(last)]


def load(step: int, run: str = "x") -> dict:
    return torch.load(f"runs/{run}/checkpoints/step={step}.ckpt", weights_only=True)


def names() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir())


def test_training_goes_on_during_a_write(fit):
    assert fit(held(step=2, until=4), every_n_steps=2) == 0
    assert between("step 2 is written", "step 2 is complete") == ["step 3", "step 4"]
    assert names() == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]


def test_a_save_and_the_end_wait_for_the_write_before(fit):
    """The write of step 4 begins when that of step 2 has ended; the run ends when that of step 6 has."""
    assert fit(held(step=2, until=4), every_n_steps=2) == 0
    assert HeldWrite.events.index("step 2 is complete") < HeldWrite.events.index("step 4 is written")
    assert fit(held(step=6, until=6), every_n_steps=6, name="y") == 0
    assert (Path("runs/y/checkpoints/last.ckpt")).readlink() == Path("step=6.ckpt")


def test_later_steps_do_not_reach_a_checkpoint(fit):
    """It equals, bit for bit, the one that training waited for."""
    fit(name="waited", every_n_steps=2, asynchronous=False)
    fit(held(step=2, until=4), every_n_steps=2)
    assert all(same(load(step, "waited"), load(step)) for step in (2, 4, 6))
    assert not same(load(2)["state_dict"], load(4)["state_dict"])


def test_without_the_setting_training_waits(fit):
    assert fit(held(step=2, until=2), every_n_steps=2, asynchronous=False) == 0
    assert between("step 2 is written", "step 3") == ["step 2 is complete", "last is step=2.ckpt"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_only_the_standstill_counts_as_the_time_of_checkpoints(fit, monkeypatch, asynchronous):
    """The write of step 4 takes a second, in which steps 5 and 6 are taken."""
    settings = {"every_n_steps": 4, "asynchronous": asynchronous}
    assert fit(held(step=4, until=4, then="late"), callback("Throughput"), **settings) == 0
    seconds = [row["throughput/seconds/checkpoints"] for row in metrics()]
    assert (sum(seconds) < 0.9) == asynchronous


def test_without_host_memory_training_waits_and_the_log_says_so_once(fit, monkeypatch, caplog):
    monkeypatch.setattr(host_copy, "available_memory", lambda: 1e3)
    assert fit(held(step=2, until=2), every_n_steps=2) == 0
    assert between("step 2 is written", "step 3") == ["step 2 is complete", "last is step=2.ckpt"]
    assert caplog.text.count("the free memory of the host is too small for a copy of the state") == 1
    assert names() == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]


def test_links_and_scores_follow_a_complete_write(fit):
    """They do not wait for the next one."""
    measure = interruption("Measure", values={"3": 50.0})
    settings = {"every_n_steps": 3, "keep_last": 1, "monitor": "ruler/subset_mean"}
    assert fit(held(step=3, until=4, linger=True), measure, **settings) == 0
    assert between("step 3", "step 5") == ["step 3 is written", "step 4", "step 3 is complete", "last is step=3.ckpt"]
    assert (FOLDER / "best.ckpt").readlink() == Path("step=3.ckpt")
    assert json.loads((FOLDER / "scores.json").read_text()) == {"3": 50.0}
    assert names() == ["best.ckpt", "last.ckpt", "scores.json", "step=3.ckpt", "step=6.ckpt"]


def test_a_checkpoint_that_fails_gets_no_score(fit):
    measure = interruption("Measure", values={"3": 50.0, "6": 40.0})
    assert fit(held(step=3, until=4, then="full"), measure, every_n_steps=3, monitor="ruler/subset_mean") == 0
    assert names() == ["best.ckpt", "last.ckpt", "scores.json", "step=6.ckpt"]
    assert json.loads((FOLDER / "scores.json").read_text()) == {"6": 40.0}


@pytest.mark.parametrize("reaction", ["continue", "stop"])
def test_a_full_disk_is_reported_as_soon_as_the_write_has_failed(fit, caplog, capsys, reaction):
    status = fit(held(step=3, until=4, then="full", linger=True), every_n_steps=3, on_full_disk=reaction)
    said = caplog.text if reaction == "continue" else capsys.readouterr().err
    assert said.count("step=3.ckpt was not saved ([Errno 28] No space left on device)") == 1
    assert status == (0 if reaction == "continue" else 2)
    assert ("step 5" in HeldWrite.events) == (reaction == "continue")


@pytest.mark.parametrize("step", [2, 6])
def test_a_write_that_fails_ends_the_run(fit, step):
    """Another error than a full disk; of the last step it leaves the run at its end."""
    with pytest.raises(RuntimeError, match="fell off the bus"):
        fit(held(step=step, until=step, then="fail"), every_n_steps=2)
    saved = [f"step={before}.ckpt" for before in range(2, step, 2)]
    assert names() == (["last.ckpt", *saved] if saved else [])


def test_an_error_of_training_waits_for_the_write(fit):
    with pytest.raises(RuntimeError, match="the device fell off the bus"):
        fit(held(step=2, until=3, then="late"), interruption("FailsAtOnce", step=3), every_n_steps=2)
    assert HeldWrite.events[-1] == "step 2 is complete"
    assert names() == ["last.ckpt", "step=2.ckpt"]


def test_a_signal_during_a_write_waits_for_it(fit, capsys):
    """The step after it is saved too, and the resumed run equals one that was not stopped."""
    fit(name="whole", every_n_steps=2)
    assert fit(held(step=2, until=3, then="SIGTERM"), every_n_steps=2) == 128 + signal.SIGTERM
    events = HeldWrite.events
    assert events.index("step 2 is complete") < events.index("step 3 is written") < events.index("step 3 is complete")
    assert "saved in runs/x/checkpoints/step=3.ckpt" in capsys.readouterr().err
    assert names() == ["last.ckpt", "step=2.ckpt", "step=3.ckpt"]
    assert fit(every_n_steps=2, options={"ckpt_path": "last"}) == 0
    assert losses() == losses("whole")
    assert same(load(6)["state_dict"], load(6, "whole")["state_dict"])


def test_a_signal_in_the_step_after_a_save_waits_for_its_write_and_does_not_repeat_it(fit, capsys):
    assert fit(held(step=2, until=2, then="SIGTERM"), every_n_steps=2) == 128 + signal.SIGTERM
    assert "saved in runs/x/checkpoints/step=2.ckpt" in capsys.readouterr().err
    assert [event for event in HeldWrite.events if "is" in event] == ["step 2 is written", "step 2 is complete"]


def test_a_run_killed_during_a_write_resumes_from_the_checkpoint_before(fit, arguments):
    fit(name="whole", every_n_steps=2)
    line = command({**arguments, **entries(held(step=4, until=5, then="SIGKILL"), every_n_steps=2)})
    assert Run(line).wait(60).status == -signal.SIGKILL
    assert names() == [".step=4.ckpt.partial", "last.ckpt", "step=2.ckpt"]
    assert fit(every_n_steps=2, options={"ckpt_path": "last"}) == 0
    assert losses() == losses("whole")
    assert same(load(6)["state_dict"], load(6, "whole")["state_dict"])
