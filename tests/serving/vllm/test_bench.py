"""`lrsa bench-serve` in vLLM: more requests run at once in the same memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lrsa_lightning import LRSA
from tests.conftest import make_model
from tests.serving.vllm.engines import own_process

pytest.importorskip("vllm")
pytestmark = pytest.mark.usefixtures("in_tmp_path")
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": 1024}
OPTIONS = "--retention_ratios 0.5 0.25 --new_tokens 16 --requests 32 --rounds 1 --dense_requests 6"


def test_more_requests_run_at_once_in_the_same_memory():
    """Prompts of 8 lags: at least 1.6 times as many as under full attention at r=1/2, 2.5 times at r=1/4."""
    model = make_model(hidden_size=128, intermediate_size=128, max_position_embeddings=4096)
    LRSA(lag_size=128, sink_size=16, retention_ratio=0.5).install(model)
    model.save_pretrained("folder")
    line = [sys.executable, "-m", "lrsa_lightning", "bench-serve", "folder"]
    line += ["--engine", json.dumps(ENGINE), *OPTIONS.split()]
    done = subprocess.run(line, env=own_process(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(Path("bench_serve.json").read_text())
    running = {name: figures["together"]["running_before_preemption"] for name, figures in found["summary"].items()}
    assert running["r=0.5"] >= 1.6 * running["dense"] > 0
    assert running["r=0.25"] >= 2.5 * running["dense"]
    assert all(turn["together"]["requests_a_second"] > 0 for turns in found["rounds"].values() for turn in turns)
    assert "| r=0.25 |" in done.stdout
