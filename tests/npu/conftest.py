"""Tests of the NPU plug-in. Those that need the device run under `make test-npu`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import sample_rows, tiny_run, write_jsonl
from tests.processes import on_lines
from tests.runs import callback, command

CONFIGS = Path(__file__).parents[2] / "configs" / "trainer"
WHY = "needs torch_npu on stand-in CANN libraries: make test-npu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "LRSA_NPU_STANDIN" not in os.environ:
        for item in items:
            if item.get_closest_marker("npu"):
                item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
def run_arguments(tokenizer, tokenizer_dir, tmp_path_factory) -> dict[str, str]:
    """The options of a run of six steps on one or two ranks, with checkpoints after the third and the last."""
    folder = tmp_path_factory.mktemp("npu")
    own = {
        "runs_dir": str(folder / "runs"),
        "data.cache_dir": str(folder / "cache"),
        "trainer.callbacks": json.dumps([callback("Checkpoints", every_n_steps=3, keep_last=None)]),
    }
    return tiny_run(write_jsonl(folder / "train.jsonl", sample_rows()), tokenizer, tokenizer_dir) | own


def plugin(name: str, **arguments) -> str:
    return json.dumps({"class_path": f"lrsa_lightning.npu.{name}", "init_args": arguments})


KINDS = {
    "cpu": {"trainer.accelerator": "cpu", "trainer.devices": "1"},
    "npu_single": {
        "trainer.accelerator": plugin("NPUAccelerator"),
        "trainer.strategy": plugin("SingleNPUStrategy"),
        "trainer.devices": "1",
    },
    "npu_ddp": {
        "trainer.accelerator": plugin("NPUAccelerator"),
        "trainer.strategy": plugin("NPUDDPStrategy"),
        "trainer.devices": "2",
    },
}
KINDS["npu_zero1"] = {**KINDS["npu_ddp"], "trainer.strategy": plugin("NPUDeepSpeedStrategy", stage=1)}
for _kind in ("ulysses", "context"):
    _strategy = plugin("NPUDDPStrategy", sequence_parallel={"size": 2, "kind": _kind})
    KINDS[f"npu_ddp_{_kind}"] = {**KINDS["npu_ddp"], "trainer.strategy": _strategy}
for _stage in (2, 3):  # as users run them, and degree 2
    KINDS[f"npu_zero{_stage}"] = {"config": str(CONFIGS / f"npu_zero{_stage}_sp2.yaml"), "trainer.devices": "2"}


@pytest.fixture(scope="session")
def run_of(run_arguments) -> Callable[[str], Path]:
    """The directory of a finished run on a kind of device."""

    def run(kind: str) -> Path:
        directory = Path(run_arguments["runs_dir"]) / kind
        if not directory.exists():
            on_ranks_of(kind, command({**KINDS[kind], **run_arguments, "run_name": kind}))
        return directory

    return run


def on_ranks_of(kind: str, arguments: list[str]) -> None:
    """Runs the command to its end, with a process for each device of a kind."""
    for ended in on_lines([arguments] * int(KINDS[kind]["trainer.devices"]), timeout=300):
        assert ended.status == 0, ended.err


def lrsa(*arguments: str, **environment: str) -> str:
    """Runs the command to its end in a process that starts the others. Returns its stderr."""
    user = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}  # the strategy says it
    result = subprocess.run(
        [sys.executable, "-m", "lrsa_lightning.cli", *arguments],
        env=user | {"WANDB_MODE": "offline", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stderr


def curve(run: Path, metric: str = "train/loss") -> dict[int, float]:
    """A metric by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[metric] for row in rows if metric in row}
