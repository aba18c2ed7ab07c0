"""ZeRO over real processes: the same losses, norms and first weights as one plain process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import command, losses, metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]
STRATEGY = "lrsa_lightning.distributed.deepspeed.SPDeepSpeedStrategy"


def zero(stage: int, **arguments) -> str:
    return json.dumps({"class_path": STRATEGY, "init_args": {"stage": stage, **arguments}})


def lrsa(*arguments: str, fails: bool = False) -> str:
    """Runs the command to its end, and returns what it said."""
    executable = Path(sys.executable).parent / "lrsa"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr


def norms(run: str) -> dict[int, float]:
    return {row["step"]: row["train/grad_norm"] for row in metrics(run) if "train/grad_norm" in row}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero(arguments, stage):
    arguments |= {"data.micro_batch_size": "1"}
    lrsa(*command(arguments))
    lrsa(*command({**arguments, "run_name": "zero", "trainer.devices": "2", "trainer.strategy": zero(stage)}))
    print(metrics("x"))
    print(metrics("zero"))
    assert losses("zero") == pytest.approx(losses("x"), abs=5e-6)
    assert norms("zero") == pytest.approx(norms("x"), rel=1e-5)
