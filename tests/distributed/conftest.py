"""Runs under ZeRO that several tests look at, made once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import QUIET, TINY_MODEL, sample_rows, write_jsonl
from tests.distributed.zero import lrsa, zero
from tests.runs import callback, command


@pytest.fixture(scope="session")
def zero_arguments(tokenizer, tokenizer_dir, tmp_path_factory) -> dict[str, str]:
    """The options of a run of seven steps, of which an epoch has six, with accumulation on one and two ranks."""
    folder = tmp_path_factory.mktemp("zero")
    callbacks = [callback("Checkpoints", every_n_steps=2, keep_last=2, keep_every_n_steps=4)]
    return {
        "runs_dir": str(folder / "runs"),
        "model.from_config": json.dumps({**TINY_MODEL, "vocab_size": len(tokenizer)}),
        "model.lr": "1e-2",
        "model.attention": "LRSA",
        "model.attention.lag_size": "16",
        "model.attention.sink_size": "4",
        "data.train_files": str(write_jsonl(folder / "train.jsonl", sample_rows())),
        "data.tokenizer": str(tokenizer_dir),
        "data.cache_dir": str(folder / "cache"),
        "data.seq_len": "160",
        "data.global_batch_size": "4",
        "data.micro_batch_size": "1",
        "data.num_workers": "0",
        "trainer.max_steps": "7",
        "trainer.accelerator": "cpu",
        "trainer.devices": "2",
        "trainer.precision": "32-true",
        **QUIET,
        "trainer.callbacks": json.dumps(callbacks),
    }


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
