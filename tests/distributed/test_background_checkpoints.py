"""Training on several ranks goes on while they write a checkpoint, and they agree about how the write ended."""

import json
from pathlib import Path

import pytest

from tests.distributed.fits import strategy
from tests.distributed.zero import curve, lrsa
from tests.runs import callback, command

pytestmark = pytest.mark.slow


@pytest.fixture
def run(zero_arguments, tmp_path):
    """Seven steps on two ranks; returns what they said."""

    def fit(name: str, *callbacks: dict, fails: bool = False, **options: str) -> str:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=3)])
        own = {"runs_dir": str(tmp_path), "run_name": "x", "trainer.callbacks": entries}
        return lrsa(*command({**zero_arguments, **own, **strategy(name), **options}), fails=fails)

    return fit


def held(rank: int, **settings) -> dict:
    return {"class_path": "tests.held_writes.HeldWrite", "init_args": {"step": 3, "until": 4, "rank": rank, **settings}}


def check_order(said: str, *events: str) -> None:
    places = [said.index(f"{event}\n") for event in events]
    assert places == sorted(places)


RANKS = [("zero1", 1), ("zero2", 1), ("zero3", 0), ("fsdp2", 0), ("ddp", 0)]


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_training_goes_on_and_the_link_follows_before_the_next_write(run, tmp_path, name, rank):
    """The ranks ask each other one and two steps later. Another rank may write its files meanwhile."""
    said = run(name, held(rank, linger=True), held(1 - rank, step=100))
    check_order(said, *(f"rank {rank}: {event}" for event in ("step 3 is written", "step 4", "step 3 is complete")))
    check_order(said, "rank 0: step 4", "rank 0: last is step=3.ckpt", "rank 0: step 6")
    assert (tmp_path / "x" / "checkpoints" / "last.ckpt").readlink() == Path("step=7.ckpt")


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_a_signal_during_a_write_stops_all_ranks_with_all_steps_saved(run, tmp_path, name, rank):
    run(name, held(rank, then="SIGTERM"), fails=True)
    saved = sorted(path.name for path in (tmp_path / "x" / "checkpoints").iterdir())
    # Ranks agree about signals once a step: the one after step 4 is noticed at the end of step 5.
    assert saved == ["last.ckpt", "step=3.ckpt", "step=5.ckpt"]
    run(name, ckpt_path="last")
    stopped = curve(tmp_path / "x")
    run(name, run_name="whole")
    assert stopped == curve(tmp_path / "whole")


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_all_ranks_go_on_when_the_disk_of_one_is_full(run, tmp_path, name, rank):
    said = run(name, held(rank, then="full"))
    assert said.count("step=3.ckpt was not saved ([Errno 28] No space left on device)") == 1
    saved = sorted(path.name for path in (tmp_path / "x" / "checkpoints").iterdir())
    assert saved == ["last.ckpt", "step=6.ckpt", "step=7.ckpt"]
