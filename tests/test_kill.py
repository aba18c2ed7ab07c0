"""Runs that are killed wherever it hurts, twice each, end with the losses and weights of one that never stopped.

The processes are real, and so is SIGKILL; they are forked from one that has imported everything already.
"""

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from lrsa_lightning.checkpoint_files import find_last
from tests.interruptions import KillInSave, interruption
from tests.runs import callback, command, losses

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]
STEPS = 14  # an epoch has six, a step two micro-batches
EVERY = 3


def points(seed: int) -> list[tuple[dict, dict]]:
    """Pairs of places to be killed at, the second after the first, in the order of a run."""
    draw = random.Random(seed)
    moments = ("start", "backward", "end")
    at = [sorted(draw.sample(range(2 * STEPS), 2)) for _ in range(3)]
    at += [(11, 12), (12, 23), (2 * EVERY - 1, 2 * EVERY)]  # around the ends of epochs, and a checkpoint's step
    amid = [
        tuple(interruption("KillAt", micro_batch=micro_batch, moment=draw.choice(moments)) for micro_batch in pair)
        for pair in at
    ]
    steps = [3, 6, 9, 12]  # of checkpoints, and ends of epochs
    saving = [
        tuple(interruption("KillInSave", step=step, moment=moment) for step in sorted(draw.sample(steps, 2)))
        for moment in KillInSave.MOMENTS
    ]
    return amid + saving


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lrsa_lightning.cli", "tests.interruptions", "lrsa_lightning.pretrained"])
    threads, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"
    yield context
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads


def run_main(folder: Path, line: list[str]) -> None:
    """What a child process does."""
    from lrsa_lightning.cli import main

    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    main(line)


@pytest.fixture
def fit(processes, arguments, tmp_path):
    """Starts or goes on with a run; returns the exit status, negative for a signal."""

    def run(name: str, *callbacks: dict) -> int:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=EVERY, keep_last=2)])
        options = {"trainer.callbacks": entries, "ckpt_path": "last"}
        if (config := Path(f"runs/{name}/config.yaml")).exists():
            line = command({"config": str(config), **options})
        else:
            line = command({**arguments, "trainer.max_steps": str(STEPS), "run_name": name, **options})
        process = processes.Process(target=run_main, args=(tmp_path, line))
        process.start()
        process.join(60)
        return process.exitcode

    return run


def state(run: str) -> dict:
    return torch.load(find_last(Path(f"runs/{run}/checkpoints")).path, weights_only=True)


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_killed_runs_end_as_the_one_that_never_stopped(fit):
    assert fit("whole") == 0, Path("stderr.txt").read_text()
    kills, whole = 0, state("whole")
    for number, pair in enumerate(points(seed=20250612)):
        run = f"run-{number}"
        for deadly in pair:
            assert fit(run, deadly) == -signal.SIGKILL, (pair, Path("stderr.txt").read_text())
            kills += 1
        assert fit(run) == 0, (pair, Path("stderr.txt").read_text())
        assert losses(run) == losses("whole"), pair
        assert all(same(whole[key], state(run)[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers"))
        assert not list(Path(f"runs/{run}/checkpoints").glob("*.partial")), pair
    assert kills >= 20


@pytest.mark.parametrize("moment", ["half", "before replace", "before link"])
def test_what_is_last_after_a_kill_during_a_write(fit, moment):
    """The one before, until the new one lies at its place; a warning names what was left out."""
    assert fit("x", interruption("KillInSave", step=6, moment=moment)) == -signal.SIGKILL
    written = moment == "before link"
    assert find_last(Path("runs/x/checkpoints")).path.name == ("step=6.ckpt" if written else "step=3.ckpt")
    assert fit("x") == 0
    warned = "not whole and left out: .step=6.ckpt.partial; last is step=3.ckpt" in Path("stderr.txt").read_text()
    assert warned == (not written)
