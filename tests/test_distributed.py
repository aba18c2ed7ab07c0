"""Two real processes (DDP over gloo): the same losses as one, and a resume with another number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.slow
CHECKPOINTS = {"every_n_train_steps": 1, "save_top_k": -1, "save_last": "link", "filename": "{step}"}
CALLBACKS = [
    {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": CHECKPOINTS},
    {"class_path": "lrsa_lightning.callbacks.LossCurve"},
]


@pytest.fixture
def fit(train_file, tokenizer, tokenizer_dir, tmp_path):
    """Runs `lrsa fit` for 14 steps, of which an epoch has six, and returns the losses."""
    options = {
        "model.from_config": json.dumps({**TINY_MODEL, "vocab_size": len(tokenizer)}),
        "model.lr": "1e-2",
        "model.attention": "LRSA",
        "model.attention.lag_size": "16",
        "model.attention.sink_size": "4",
        "data.train_files": str(train_file),
        "data.tokenizer": str(tokenizer_dir),
        "data.seq_len": "160",
        "data.global_batch_size": "4",
        "data.micro_batch_size": "1",
        "trainer.max_steps": "14",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.callbacks": json.dumps(CALLBACKS),
        "trainer.logger": '[{"class_path": "lrsa_lightning.callbacks.MetricsFile"}]',
        "run_name": "x",
    }

    def run(devices: int, step: int | None = None) -> dict[int, float]:
        command = [Path(sys.executable).parent / "lrsa", "fit", *(f"--{k}={v}" for k, v in options.items())]
        command += [f"--trainer.devices={devices}", "--trainer.strategy=ddp"]
        if step is not None:
            command.append(f"--ckpt_path=runs/x/checkpoints/step={step}.ckpt")
        # One thread a process: two processes that spin for the same cores take minutes.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr
        rows = map(json.loads, (tmp_path / "runs/x/metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}

    return run


@pytest.mark.parametrize(("first", "then", "step"), [(1, 2, 8), (2, 1, 6)])
def test_a_run_resumes_with_another_number_of_ranks(fit, first, then, step):
    whole = fit(first)
    assert list(whole) == list(range(14))
    assert fit(then, step) == pytest.approx(whole, abs=1e-5)
