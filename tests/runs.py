"""Command lines of runs, and what the runs left behind."""

import json
from pathlib import Path

import pytest
import torch

from lrsa_lightning.cli import main


def command(arguments: dict[str, str], subcommand: str = "fit") -> list[str]:
    return [subcommand, *(f"--{key}={value}" for key, value in arguments.items())]


def callback(name: str, **arguments) -> dict:
    return {"class_path": f"lrsa_lightning.callbacks.{name}", "init_args": arguments}


def checkpoints(every: int) -> str:
    arguments = {"every_n_train_steps": every, "save_top_k": -1, "save_last": "link", "filename": "{step}"}
    return json.dumps([{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": arguments}])


def kept_curve() -> str:
    """Checkpoints of every step, and the callback that drops what was logged beyond the one resumed from."""
    return json.dumps([*json.loads(checkpoints(1)), callback("LossCurve")])


EACH_STEP = json.dumps([callback("Checkpoints", every_n_steps=1)])


def metrics(run: str = "x") -> list[dict]:
    return [json.loads(line) for line in (Path("runs") / run / "metrics.jsonl").read_text().splitlines()]


def losses(run: str = "x") -> dict[int, float]:
    rows = metrics(run)
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert len(steps) == len(set(steps))
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def refusal(capsys, arguments: list[str]) -> str:
    """What the command says that ends with exit status 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def everything(folder: Path) -> dict[str, bytes]:
    """The files of a folder, with what they hold."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(first, second) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
