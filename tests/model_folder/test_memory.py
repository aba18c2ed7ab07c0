"""The memory that an export takes, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.conftest import TINY_MODEL

ROOT = Path(__file__).parents[2]
# A first export of a tiny run imports everything. VmHWM is the peak of what the process held, mapped files included.
MEASURED = """
import sys
from pathlib import Path
import lrsa_lightning.model_folder.export as module
from lrsa_lightning.model_folder.export import export
def kib(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name)))
export(Path("runs/tiny/checkpoints/last.ckpt"), Path("tiny"))
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
module._SHARD = "20MB"
export(Path("runs/large/checkpoints/last.ckpt"), Path("large"))
print(kib("VmHWM") - before)
"""


def make_run(name: str, tokenizer_dir: Path, **keys) -> int:
    """A run with a checkpoint of weights alone; returns their MiB."""
    config = CONFIG_MAPPING["qwen2"](**{**TINY_MODEL, **keys})
    model = AutoModelForCausalLM.from_config(config)
    folder = Path("runs") / name / "checkpoints"
    folder.mkdir(parents=True)
    state = {f"model.{key}": weight for key, weight in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 1}, folder / "step=1.ckpt")
    (folder / "last.ckpt").symlink_to("step=1.ckpt")
    model_keys = {"name_or_path": None, "from_config": {**TINY_MODEL, **keys}, "rope_parameters": None, "lora": None}
    data = {"source": "files", "tokenizer": str(tokenizer_dir), "template": "base"}
    attention = {"class_path": "lrsa_lightning.LRSA", "init_args": {"lag_size": 16}}
    run = {"model": {**model_keys, "attention": attention}, "data": data}
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(run))
    return sum(weight.nbytes for weight in model.parameters()) // 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_holds_the_model_once_and_a_shard(in_tmp_path, tokenizer_dir):
    make_run("tiny", tokenizer_dir, vocab_size=320)
    size = make_run("large", tokenizer_dir, vocab_size=40000, hidden_size=512, num_hidden_layers=4)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    largest = 40000 * 512 * 4 // 2**20  # of a shard: the embedding
    assert size < int(done.stdout.splitlines()[-1]) / 2**10 < size + 1.3 * largest
