"""Command lines of runs under ZeRO, what they left behind, and callbacks that change what they find."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from lightning import Callback


def zero(stage: int, **arguments) -> str:
    strategy = "lrsa_lightning.distributed.SPDeepSpeedStrategy"
    return json.dumps({"class_path": strategy, "init_args": {"stage": stage, **arguments}})


def lrsa(*arguments: str, fails: bool = False) -> str:
    """Runs the command to its end, and returns what it said."""
    executable = Path(sys.executable).parent / "lrsa"
    tests = {"PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_MODE": "offline"}
    environment = {**os.environ, **tests, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr


def callback(name: str, **arguments) -> dict:
    """One of this file."""
    return {"class_path": f"tests.distributed.zero.{name}", "init_args": arguments}


def curve(run: Path, metric: str = "train/loss") -> dict[int, float]:
    """A metric by step; each step is logged once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [(row["step"], row[metric]) for row in rows if metric in row]
    assert len(values) == len(dict(values))
    return dict(values)


class FullDisk(Callback):
    """From a step on one rank can write no more of a checkpoint than half a file."""

    def __init__(self, rank: int, step: int):
        self.rank = rank
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.rank:
            from lrsa_lightning.distributed import zero_files

            zero_files.write_whole = _fill_up


class OneReader(Callback):
    """Lets the first rank alone read pretrained weights."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        if trainer.global_rank > 0:
            from transformers import PreTrainedModel

            PreTrainedModel.from_pretrained = None


class UncompiledAdam(Callback):
    """Puts torch's AdamW in the place of the one that DeepSpeed compiles."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        import torch
        from deepspeed.ops import adam

        adam.DeepSpeedCPUAdam = type("DeepSpeedCPUAdam", (torch.optim.AdamW,), {})


def _fill_up(state: dict, path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")
