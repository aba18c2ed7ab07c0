"""vLLM without our plug-in refuses a folder with a rule, whichever of its implementations is asked for."""

import os
import subprocess
import sys

import pytest

from lrsa_lightning import LRSA
from tests.conftest import make_model

pytest.importorskip("vllm")
CODE = """
import sys
from vllm import EngineArgs
folder = sys.argv[1]
for implementation in ("auto", "vllm", "transformers"):
    try:
        EngineArgs(model=folder, skip_tokenizer_init=True, model_impl=implementation).create_model_config()
    except ValueError as error:
        print(implementation, "LrsaQwen2ForCausalLM" in str(error))
stock = {"architectures": ["Qwen2ForCausalLM"], "lrsa": None}
config = EngineArgs(model=folder, skip_tokenizer_init=True, hf_overrides=stock).create_model_config()
print(config.architectures, config.hf_config.lrsa)
"""


def test_it_is_refused_and_runs_dense_only_on_purpose(tmp_path):
    model = make_model()
    LRSA(lag_size=64).install(model)
    model.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path],
        env={**os.environ, "VLLM_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = ["auto True", "vllm True", "transformers True", "['Qwen2ForCausalLM'] None"]
    assert done.stdout.splitlines()[-4:] == said, done.stderr
