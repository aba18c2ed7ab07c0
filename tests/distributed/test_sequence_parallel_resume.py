"""Runs with sequence parallelism resume exactly, also with another number of ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.fits import Fit, fit, strategy
from tests.runs import callback

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]


@pytest.fixture
def options(arguments) -> dict[str, str]:
    """Eight steps, six an epoch, with a checkpoint after every fourth."""
    ours = json.dumps([callback("Checkpoints", every_n_steps=4)])
    return {
        **arguments,
        "data.micro_batch_size": "1",
        "trainer.max_steps": "8",
        "trainer.callbacks": ours,
        "trainer.gradient_clip_val": "1",
    }


def figures(run: Fit, after: int) -> list[tuple]:
    steps = [row for row in run.rows if "train/loss" in row and row["step"] > after]
    return [(row["step"], row["train/loss"], row["train/grad_norm"], row["train/tokens"]) for row in steps]


KINDS = [(name, kind) for name in ("zero1", "zero2", "zero3", "fsdp2") for kind in ("ulysses", "context")]


@pytest.mark.parametrize(("name", "kind"), [*KINDS, ("ddp", "context")])
def test_a_resume_is_bit_exact(options, tmp_path, name, kind):
    options |= strategy(name, 2, kind)
    uninterrupted = fit(2, options, tmp_path)
    again = fit(2, options, tmp_path, ckpt_path="runs/x/checkpoints/step=4.ckpt")
    assert len(figures(uninterrupted, 4)) == 4
    assert figures(again, 4) == figures(uninterrupted, 4)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, "zero2", 2, "context"), (2, "zero2", 1, "auto")),
        ((2, "zero1", 2, "ulysses"), (2, "zero1", 2, "context")),
        ((2, "zero3", 2, "context"), (2, "zero3", 2, "ulysses")),
        ((2, "zero3", 1, "auto"), (2, "zero3", 2, "ulysses")),
        ((2, "fsdp2", 2, "context"), (1, "fsdp2", 1, "auto")),
        ((2, "fsdp2", 2, "ulysses"), (4, "fsdp2", 2, "context")),
    ],
)
def test_a_resume_may_change_degree_and_kind(options, tmp_path, first, then):
    """The order of the samples stays. The order of sums changes."""
    uninterrupted = fit(first[0], options | strategy(*first[1:]), tmp_path)
    again = fit(then[0], options | strategy(*then[1:]), tmp_path, ckpt_path="runs/x/checkpoints/step=4.ckpt")
    for got, expected in zip(figures(again, 4), figures(uninterrupted, 4), strict=True):
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, "zero1", 2, "context"), (1, "zero2", 1, "auto")),
        ((1, "zero1", 1, "auto"), (2, "zero1", 2, "ulysses")),
        ((1, "zero2", 1, "auto"), (2, "zero2", 2, "context")),
        ((2, "zero3", 2, "ulysses"), (1, "zero3", 1, "auto")),
        ((1, "zero3", 1, "auto"), (2, "zero3", 2, "context")),
        ((2, "zero3", 2, "context"), (4, "zero3", 2, "ulysses")),
    ],
)
def test_other_numbers_of_processes_go_on_from_a_universal_folder(options, tmp_path, first, then):
    uninterrupted = fit(first[0], options | strategy(*first[1:]), tmp_path)
    saved, universal = (Path(f"runs/x/checkpoints/step=4.{suffix}") for suffix in ("ckpt", "universal"))
    folders = ["--input_folder", saved / "checkpoint", "--output_folder", universal / "checkpoint"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    again = fit(then[0], options | strategy(*then[1:]), tmp_path, ckpt_path=str(universal))
    assert len(figures(again, 4)) == 4
    for got, expected in zip(figures(again, 4), figures(uninterrupted, 4), strict=True):
        assert got == pytest.approx(expected, rel=1e-4)
