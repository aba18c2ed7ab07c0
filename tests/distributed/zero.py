"""Command lines of runs under ZeRO, and what they left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path


def zero(stage: int, **arguments) -> str:
    strategy = "lrsa_lightning.distributed.deepspeed.SPDeepSpeedStrategy"
    return json.dumps({"class_path": strategy, "init_args": {"stage": stage, **arguments}})


def lrsa(*arguments: str, fails: bool = False) -> str:
    """Runs the command to its end, and returns what it said."""
    executable = Path(sys.executable).parent / "lrsa"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    result = subprocess.run(
        [executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode != 0) == fails, result.stderr
    return result.stderr


def curve(run: Path, metric: str = "train/loss") -> dict[int, float]:
    """A metric by step; each step is logged once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [(row["step"], row[metric]) for row in rows if metric in row]
    assert len(values) == len(dict(values))
    return dict(values)
