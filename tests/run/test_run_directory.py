"""A run's directory: one process writes there, under a name that is one part of a path."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrsa_lightning.callbacks import SaveConfig
from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.run.claim import run_name_for_processes
from lrsa_lightning.run.directory import is_global_first
from lrsa_lightning.run.start import RunStart, is_start
from tests.files.test_folder_lock import hold
from tests.interruptions import interruption
from tests.runs import command, everything, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
ROOT = Path(__file__).parents[2]
RUN = Path("runs/x")


def test_two_processes_never_write_the_same_run(two_steps, capsys, monkeypatch):
    """The second process starts, resumes or validates; the files of the first do not change."""
    monkeypatch.setattr("lrsa_lightning.files.folder_lock._PATIENCE", 0.1)
    holder = hold(RUN)
    before = everything(RUN)
    begin, resume = {"run_name": "x"}, {"ckpt_path": "last", "trainer.max_steps": "3"}
    for how, subcommand in ((begin, "fit"), (resume, "fit"), ({"ckpt_path": "last"}, "validate")):
        error = refusal(capsys, command({**two_steps, **how}, subcommand))
        assert f"run runs/x is being written by process {holder.pid} on " in error
    assert everything(RUN) == before
    holder.kill()
    holder.wait()
    main(command({**two_steps, **resume}))
    assert list(losses()) == [1, 2, 3]


def is_held(run: Path) -> bool:
    """Whether another process would be refused: a separate descriptor has a separate lock."""
    with (run / ".lock").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_run_is_locked_from_its_first_file_until_it_ends(arguments, monkeypatch):
    held = []
    begin = RunStart.begin
    monkeypatch.setattr(
        RunStart, "begin", lambda self: held.append((is_held(RUN), sorted(os.listdir(RUN)))) or begin(self)
    )
    monkeypatch.setattr(SaveConfig, "on_fit_end", lambda *_: held.append(is_held(RUN)), raising=False)
    main(command({**arguments, "trainer.max_steps": "1"}))
    assert held == [(True, [".lock", ".lock_holder.json"]), True]
    assert not is_held(RUN)


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"RANK": "8"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_only_the_global_first_process_takes_the_lock(monkeypatch, environment, is_first):
    for name in ("RANK", "SLURM_PROCID", "GROUP_RANK", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_global_first() is is_first


@pytest.mark.parametrize("name", ["../../y", "/tmp/y", ".", "..", "a\nb", "", "cells"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_unsafe_run_name_is_refused(arguments, capsys, monkeypatch, name, by):
    arguments.pop("run_name")
    if by == "option":
        arguments["run_name"] = name
    elif name == "":
        pytest.skip("an empty variable is as none")
    else:
        monkeypatch.setenv("LRSA_RUN_NAME", name)
    error = refusal(capsys, command(arguments))
    assert ("--run_name" if by == "option" else "LRSA_RUN_NAME") + f" is {name!r}: expected" in error
    assert not Path("runs").exists()


def test_two_commands_of_one_process_are_two_runs(arguments, monkeypatch):
    """Also if both start within a second, although their names come from the time."""
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    arguments.pop("run_name")
    for name in ("lrsa-now", "lrsa-now-2"):
        cli = LRSACLI(command({**arguments, "trainer.max_steps": "1"}))
        assert cli.config.fit.run_name == name
        assert "LRSA_RUN_NAME" not in os.environ
        assert list(losses(name)) == [1]


def test_only_processes_of_further_devices_get_the_run_name(arguments, monkeypatch):
    told = []
    arguments.pop("run_name")
    cli = LRSACLI(command({**arguments, "trainer.max_steps": "1"})[1:], run=False)
    strategy = cli.trainer.strategy
    monkeypatch.setattr(strategy, "setup_environment", lambda: told.append(os.environ["LRSA_RUN_NAME"]))
    monkeypatch.setattr("sys.argv", ["lrsa", "--token=abc"])
    with run_name_for_processes("x", strategy, lambda text: text.replace("abc", "-")):
        assert sys.argv == ["lrsa", "--token=abc"]  # what they are started by
        strategy.setup_environment()
        assert sys.argv == ["lrsa", "--token=-"]
        assert "LRSA_RUN_NAME" not in os.environ
    assert told == ["x"]
    assert sys.argv == ["lrsa", "--token=abc"]


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [[], [interruption("FailsAtOnce")]], ids=["ends", "fails"])
def test_the_processes_that_lightning_starts_join_one_run(arguments, callbacks):
    """The run has no name on the command line. A failed start leaves nothing, whichever process fails first."""
    del arguments["run_name"]
    arguments |= {"trainer.devices": "2", "trainer.strategy": "ddp", "trainer.max_steps": "2"}
    arguments |= {"data.micro_batch_size": "1", "trainer.callbacks": json.dumps(callbacks)}
    ended = subprocess.run(
        [sys.executable, "-m", "lrsa_lightning.cli", *command(arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert (ended.returncode == 0) == (callbacks == []), ended.stderr
    found = [path.name for path in Path("runs").glob("[!.]*")]
    if callbacks:  # the first process may be killed because the other one ended
        assert all(is_start(Path("runs", name)) for name in found)
    else:
        (name,) = found
        assert list(losses(name)) == [1, 2]
