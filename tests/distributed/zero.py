"""Command lines of runs under ZeRO, their metrics, and callbacks that inject faults."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from lightning import Callback

from tests.processes import on_lines


def zero(stage: int, **arguments) -> str:
    strategy = "lrsa_lightning.distributed.SPDeepSpeedStrategy"
    return json.dumps({"class_path": strategy, "init_args": {"stage": stage, **arguments}})


def lrsa(*arguments: str, fails: bool = False) -> str:
    """Runs the command to its end, with a process for each device, as torchrun starts them.

    Returns:
        the stderr of all processes.
    """
    ended = on_lines([[*arguments]] * _devices(arguments), timeout=120)
    said = "".join(process.err for process in ended)
    assert any(process.status for process in ended) == fails, said
    return said


def launched(*arguments: str) -> None:
    """Runs the installed command to its end. It starts a process for each device itself."""
    executable = Path(sys.executable).parent / "lrsa"
    tests = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [executable, *arguments], env=os.environ | tests, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr


def _devices(arguments: tuple[str, ...]) -> int:
    options = dict(word.removeprefix("--").split("=", 1) for word in arguments[1:])
    if "trainer.devices" not in options:
        options |= {"trainer.devices": yaml.safe_load(Path(options["config"]).read_text())["trainer"]["devices"]}
    return int(options["trainer.devices"])


def callback(name: str, **arguments) -> dict:
    """The configuration of a callback of this file."""
    return {"class_path": f"tests.distributed.zero.{name}", "init_args": arguments}


def curve(run: Path, metric: str = "train/loss") -> dict[int, float]:
    """A metric by step; each step is logged once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [(row["step"], row[metric]) for row in rows if metric in row]
    assert len(values) == len(dict(values))
    return dict(values)


class FullDisk(Callback):
    """From a step on, one rank writes only half of each checkpoint file."""

    def __init__(self, rank: int, step: int):
        self.rank = rank
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.rank:
            from lrsa_lightning.distributed import zero_files

            zero_files.write_synced = _fill_up


class OneReader(Callback):
    """Lets the first rank alone read pretrained weights."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        if trainer.global_rank > 0:
            from transformers import PreTrainedModel

            PreTrainedModel.from_pretrained = None


class UncompiledAdam(Callback):
    """Replaces the AdamW that DeepSpeed compiles by torch's."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        import torch
        from deepspeed.ops import adam

        adam.DeepSpeedCPUAdam = type("DeepSpeedCPUAdam", (torch.optim.AdamW,), {})


def _fill_up(state: dict, path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")
