"""A model that transformers builds under DeepSpeed's ZeRO-3, whose weights each process holds in part."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from lrsa_lightning import LRSA, generate
from tests.conftest import make_model
from tests.processes import free_port, place

MODE = LRSA(lag_size=8, sink_size=4)


@pytest.mark.slow
def test_the_check_of_the_model_keeps_its_weights_whole(tmp_path):
    """The check builds the decoder once more while transformers builds the model itself."""
    pytest.importorskip("deepspeed")
    model = make_model()
    MODE.install(model)
    model.save_pretrained(tmp_path / "model")
    ids = torch.randint(0, 97, (1, 70), generator=torch.Generator().manual_seed(0))
    code = f"""
        import json, torch, deepspeed, lrsa_lightning
        from transformers import AutoModelForCausalLM
        from transformers.integrations import HfDeepSpeedConfig

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
        deepspeed.init_distributed("gloo")
        config = {{"zero_optimization": {{"stage": 3}}, "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1}}
        asked_for = HfDeepSpeedConfig(config)
        model = AutoModelForCausalLM.from_pretrained("model", attn_implementation="lrsa")
        assert model.lm_head.weight.numel() == 0
        engine = deepspeed.initialize(model=model, config=config)[0]
        ids = torch.tensor({ids.tolist()})
        print(json.dumps(engine.module.eval().generate(ids, max_new_tokens=8, do_sample=False)[:, 70:].tolist()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, **place(0, 1, free_port()), "DS_ACCELERATOR": "cpu"}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == generate(model, ids, MODE, 8).tolist()
