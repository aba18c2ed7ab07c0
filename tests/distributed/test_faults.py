"""A loss that is not finite on one rank of those that shard weights and sequences: all stop, or skip the step."""

import json

import pytest
from lightning import Callback

from tests.distributed.fits import Fit, fit, strategy
from tests.interruptions import interruption
from tests.runs import callback

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]

BATCH = 13  # of four micro-batches a step: in the fourth


class InfiniteLoss(Callback):
    """Makes the loss of a micro-batch infinite on one rank, and not its gradients."""

    def __init__(self, rank: int):
        self.rank = rank
        self._seen = 0

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self._seen == BATCH and trainer.global_rank == self.rank:
            loss.data.fill_(float("inf"))
        self._seen += 1


@pytest.fixture
def run(arguments, tmp_path):
    """Six steps on some ranks. One rank meets NaN."""

    def make(ranks: int, chosen: dict[str, str], *callbacks: dict, ckpt_path: str | None = None, **options) -> Fit:
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=100)])
        base = {**arguments, "data.micro_batch_size": "1", "trainer.callbacks": entries}
        return fit(ranks, base | chosen | options, tmp_path, ckpt_path)

    return make


def infinite(rank: int) -> dict:
    return {"class_path": "tests.distributed.test_faults.InfiniteLoss", "init_args": {"rank": rank}}


def poison(rank: int) -> dict:
    """NaN in a loss and all gradients; the last rank holds the labels, in zig-zag the first."""
    return interruption("PoisonedSamples", batches=[BATCH], rank=rank)


def figures(found: Fit, *without: int) -> list[tuple]:
    names = ("step", "train/loss", "train/lr", "train/tokens")
    steps = [row for row in found.rows if "train/loss" in row and row["step"] not in without]
    return [tuple(row[name] for name in names) for row in steps]


def test_all_ranks_skip_the_step_that_one_has_spoilt(run):
    """The losses after it show weights and optimizer states as if one plain process had skipped the step."""
    skip = callback("NonFiniteLoss", policy="skip")
    expected = figures(run(1, {}, infinite(0), skip), 4)
    assert len(expected) == 5
    found = run(2, strategy("fsdp2", 2, "context"), infinite(1), skip)
    assert found.curve("train/skipped_steps") == [0, 0, 0, 1, 1, 1]
    for got, one in zip(figures(found, 4), expected, strict=True):
        assert got == pytest.approx(one, rel=1e-5)


def test_skipping_is_refused_under_deepspeed_before_the_first_step(run):
    with pytest.raises(AssertionError, match="NonFiniteLoss cannot skip steps under DeepSpeed"):
        run(1, strategy("zero2"), callback("NonFiniteLoss", policy="skip"))


@pytest.mark.parametrize(
    ("name", "kind", "rank"), [("zero2", "ulysses", 1), ("zero2", "context", 0), ("fsdp2", "context", 0)]
)
def test_all_ranks_stop_before_it_and_a_resume_is_the_run_without_it(run, name, kind, rank):
    chosen = strategy(name, 2, kind)
    uninterrupted = run(2, chosen, callback("NonFiniteLoss"))
    said = f"stopped before step 4: the loss is NaN or infinite on rank {rank}; saved in"
    with pytest.raises(AssertionError, match=said):
        run(2, chosen, poison(rank), callback("NonFiniteLoss"))
    again = run(2, chosen, callback("NonFiniteLoss"), ckpt_path="runs/x/checkpoints/step=3.ckpt")
    assert figures(again, 1, 2, 3) == figures(uninterrupted, 1, 2, 3)
    assert len(figures(uninterrupted)) == 6
