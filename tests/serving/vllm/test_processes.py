"""vLLM as users start it: engine and workers in processes of their own, which find the plug-in by its entry point."""

import json
import os
import subprocess
import sys

import pytest

from lrsa_lightning import LRSA
from tests.serving.vllm.engines import expected, make_prompts, tiny_model, write_folder

pytest.importorskip("vllm", reason="make test-serve runs these in a venv with vLLM")
pytestmark = pytest.mark.vllm

SCRIPT = """
from tests.serving.vllm import engines
llm = engines.serve({folder!r}, tensor_parallel_size=2, enforce_eager=True)
print("ANSWERS", engines.answers(llm, {prompts!r}, 12))
"""


def test_tensor_parallel(tmp_path):
    """Each rank has a KV head. The scorer random knows which one: it hashes the number of the head."""
    model, mode = tiny_model("qwen3"), LRSA(lag_size=128, sink_size=16, scorer="random", seed=3)
    folder, prompts = write_folder(tmp_path, model, mode), make_prompts([500, 300])
    script = SCRIPT.format(folder=str(folder), prompts=prompts)
    variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=400, env={**os.environ, **variables}
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, result.stderr[-3000:]
    assert json.loads(lines[0].removeprefix("ANSWERS ")) == expected(model, mode, prompts, 12)
