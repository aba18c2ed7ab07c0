"""`lrsa fit` on one and two NPUs: the losses of the CPU, and resumes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.npu.conftest import curve, lrsa
from tests.runs import command

pytestmark = pytest.mark.npu


@pytest.mark.parametrize("kind", ["npu_single", "npu_ddp", "npu_zero1", "npu_zero2", "npu_zero3"])
def test_losses_and_gradient_norms_of_the_cpu(run_of, kind):
    for metric in ("train/loss", "train/grad_norm"):
        expected = curve(run_of("cpu"), metric)
        assert len(expected) == 6
        assert curve(run_of(kind), metric) == pytest.approx(expected, rel=1e-4)


def test_a_resume_is_bit_exact(run_of, tmp_path):
    kind = "npu_ddp"
    run = shutil.copytree(run_of(kind), tmp_path / "runs" / kind, symlinks=True)
    third = next((run / "checkpoints").glob("step=3*"))
    lrsa("fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={third}")
    assert curve(run) == curve(run_of(kind))


def test_a_checkpoint_loads_where_there_is_no_npu(run_of):
    """torch.load with map_location, in a process without torch_npu."""
    path = next((run_of("npu_ddp") / "checkpoints").glob("step=6*"))
    code = f"""
import sys, torch
state = torch.load({str(path)!r}, map_location="cpu", weights_only=True)
assert {{z.device.type for z in state["state_dict"].values()}} == {{"cpu"}}
assert "torch_npu" not in sys.modules
"""
    plain = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    subprocess.run([sys.executable, "-c", code], check=True, env=plain | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})


def test_a_run_goes_on_on_the_cpu(run_of, tmp_path):
    run = shutil.copytree(run_of("npu_single"), tmp_path / "runs" / "npu_single", symlinks=True)
    third = next((run / "checkpoints").glob("step=3*"))
    elsewhere = ("--trainer.accelerator=cpu", "--trainer.strategy=auto")
    lrsa("fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={third}", *elsewhere)
    assert curve(run) == pytest.approx(curve(run_of("cpu")), rel=1e-4)


def test_weights_are_written_as_they_are(run_of):
    states = []
    for kind in ("cpu", "npu_single"):
        path = next((run_of(kind) / "checkpoints").glob("step=6*"))
        states.append(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    assert all(torch.allclose(states[1][name], z, atol=1e-4) for name, z in states[0].items())


def test_configuration_of_one_npu(run_arguments):
    """In a process that has not imported lrsa_lightning.npu before it reads the file."""
    file = Path(__file__).parents[2] / "configs" / "trainer" / "npu_single.yaml"
    options = {key: value for key, value in run_arguments.items() if key != "trainer.precision"}
    options |= {"run_name": "from_file", "trainer.max_steps": "2"}
    lrsa("fit", f"--config={file}", *command(options)[1:])
    assert len(curve(Path(run_arguments["runs_dir"]) / "from_file")) == 2
