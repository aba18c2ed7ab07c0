"""Folders that ZeRO's ranks write: whole or absent, kept by the rules of files, and resumed from exactly."""

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.zero import curve, lrsa

pytestmark = pytest.mark.slow


@pytest.fixture
def copy_of(run_of_stage, tmp_path):
    """A copy of a finished run that may be changed, its configuration pointing to it."""

    def copy(stage: int) -> Path:
        directory = tmp_path / "runs" / f"stage-{stage}"
        shutil.copytree(run_of_stage(stage), directory, symlinks=True)
        return directory

    return copy


def resume(run: Path, ckpt_path: str, *options: str, **kwargs) -> str:
    config = ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}"]
    return lrsa(*config, f"--ckpt_path={ckpt_path}", f"--trainer.default_root_dir={run}", *options, **kwargs)


def test_rules_of_keeping_hold_for_folders(run_of_stage):
    folder = run_of_stage(2) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=4.ckpt", "step=6.ckpt", "step=7.ckpt"]
    assert (folder / "last.ckpt").resolve() == (folder / "step=7.ckpt").resolve()
    written = json.loads((folder / "step=7.ckpt" / "written.json").read_text())
    assert (written["step"], written["world_size"], written["stage"]) == (7, 2, 2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resume_is_bit_exact(copy_of, run_of_stage, stage):
    """Amid an epoch of six steps, and over its end."""
    run = copy_of(stage)
    for path in ("step=6.ckpt", "step=7.ckpt"):
        shutil.rmtree(run / "checkpoints" / path)
    resume(run, "last")
    assert curve(run) == curve(run_of_stage(stage))
    assert curve(run, "train/grad_norm") == curve(run_of_stage(stage), "train/grad_norm")
