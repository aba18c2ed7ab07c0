"""Runs under ZeRO for several tests, made once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import sample_rows, tiny_run, write_jsonl
from tests.distributed.zero import lrsa, zero
from tests.runs import callback, command


@pytest.fixture(scope="session")
def zero_arguments(tokenizer, tokenizer_dir, tmp_path_factory) -> dict[str, str]:
    """The options of a run of seven steps, six an epoch, with gradient accumulation on one and two ranks."""
    folder = tmp_path_factory.mktemp("zero")
    callbacks = [callback("Checkpoints", every_n_steps=2, keep_last=2, keep_every_n_steps=4)]
    own = {
        "runs_dir": str(folder / "runs"),
        "data.cache_dir": str(folder / "cache"),
        "trainer.max_steps": "7",
        "trainer.accelerator": "cpu",
        "trainer.devices": "2",
        "trainer.callbacks": json.dumps(callbacks),
    }
    return tiny_run(write_jsonl(folder / "train.jsonl", sample_rows()), tokenizer, tokenizer_dir) | own


@pytest.fixture(scope="session")
def run_of_stage(zero_arguments) -> Callable[[int], Path]:
    """The directory of a finished run on two ranks; stage 0 is one process without ZeRO."""
    runs = Path(zero_arguments["runs_dir"])

    def run(stage: int) -> Path:
        directory = runs / f"stage-{stage}"
        if not directory.exists():
            strategy = {"trainer.strategy": zero(stage)} if stage else {"trainer.devices": "1"}
            lrsa(*command({**zero_arguments, "run_name": directory.name, **strategy}))
        return directory

    return run
