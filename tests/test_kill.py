"""Runs that are killed wherever it hurts, twice each, end with the losses and weights of one that never stopped.

The processes are real, and so is SIGKILL; they are forked from one that has imported everything already.
"""

import json
import random
import signal
from pathlib import Path

import pytest
import torch

from lrsa_lightning.checkpoints.last import find_last
from tests.interruptions import KillInSave, interruption
from tests.runs import callback, command, losses, same
from tests.warm import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]
STEPS = 14  # an epoch has six, a step two micro-batches
EVERY = 3
AT_ONCE = 2


def points(seed: int) -> list[tuple[dict, dict]]:
    """Pairs of points at which a run is killed, the second after the first."""
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


@pytest.fixture
def start(arguments):
    """Starts or resumes a run."""

    def run(name: str, *callbacks: dict) -> Run:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=EVERY, keep_last=2)])
        options = {"trainer.callbacks": entries, "ckpt_path": "last"}
        if (config := Path(f"runs/{name}/config.yaml")).exists():
            line = command({"config": str(config), **options})
        else:
            line = command({**arguments, "trainer.max_steps": str(STEPS), "run_name": name, **options})
        return Run(line)

    return run


def state(run: str) -> dict:
    return torch.load(find_last(Path(f"runs/{run}/checkpoints")).path, weights_only=True)


def test_killed_runs_end_like_an_uninterrupted_one(start):
    ended = start("whole").wait(60)
    assert ended.status == 0, ended.err
    kills, whole, pairs = 0, state("whole"), points(seed=20250612)
    for first in range(0, len(pairs), AT_ONCE):
        some = {f"run-{number}": pairs[number] for number in range(len(pairs))[first : first + AT_ONCE]}
        for turn in (0, 1):
            for name, run in [(name, start(name, pair[turn])) for name, pair in some.items()]:
                ended = run.wait(60)
                assert ended.status == -signal.SIGKILL, (some[name], ended.err)
                kills += 1
        for name, run in [(name, start(name)) for name in some]:
            ended = run.wait(60)
            assert ended.status == 0, (some[name], ended.err)
            assert losses(name) == losses("whole"), some[name]
            assert all(
                same(whole[key], state(name)[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers")
            )
            assert not list(Path(f"runs/{name}/checkpoints").glob("*.partial")), some[name]
    assert kills >= 20


@pytest.mark.parametrize("moment", ["half", "before replace", "before link"])
def test_what_is_last_after_a_kill_during_a_write(start, moment):
    """It is the previous one until the new one is in its place; a warning names what was skipped."""
    assert start("x", interruption("KillInSave", step=6, moment=moment)).wait(60).status == -signal.SIGKILL
    written = moment == "before link"
    assert find_last(Path("runs/x/checkpoints")).path.name == ("step=6.ckpt" if written else "step=3.ckpt")
    ended = start("x").wait(60)
    assert ended.status == 0
    warned = "skipped, training cannot resume from: .step=6.ckpt.partial; last is step=3.ckpt" in ended.err
    assert warned == (not written)
