"""`lrsa fit` on one and two NPUs: the losses of the CPU, and resumes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.npu.conftest import CONFIGS, KINDS, curve, lrsa, on_ranks_of
from tests.runs import command

pytestmark = pytest.mark.npu


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cpu"])
def test_losses_and_gradient_norms_of_the_cpu(run_of, kind):
    for metric in ("train/loss", "train/grad_norm"):
        expected = curve(run_of("cpu"), metric)
        assert len(expected) == 6
        assert curve(run_of(kind), metric) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["npu_single", "npu_ddp_context", "npu_zero2", "npu_zero3"])
def test_a_resume_is_bit_exact(run_of, tmp_path, kind):
    run = shutil.copytree(run_of(kind), tmp_path / "runs" / kind, symlinks=True)
    third = next((run / "checkpoints").glob("step=3*"))
    on_ranks_of(kind, ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={third}"])
    assert curve(run) == curve(run_of(kind))


def test_a_checkpoint_loads_where_there_is_no_npu(run_of):
    """In a process without torch_npu: `lrsa eval` and `lrsa export` read it so."""
    path = next((run_of("npu_ddp") / "checkpoints").glob("step=6*"))
    code = f"""
import sys
from pathlib import Path
from lrsa_lightning.trained_model import load_checkpoint
assert {{z.device.type for z in load_checkpoint(Path({str(path)!r})).model.parameters()}} == {{"cpu"}}
assert "torch_npu" not in sys.modules
"""
    plain = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    plain |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": str(CONFIGS.parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=plain)


def test_a_run_goes_on_on_the_cpu(run_of, tmp_path):
    run = shutil.copytree(run_of("npu_single"), tmp_path / "runs" / "npu_single", symlinks=True)
    third = next((run / "checkpoints").glob("step=3*"))
    elsewhere = ["--trainer.accelerator=cpu", "--trainer.strategy=auto"]
    resume = ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={third}"]
    on_ranks_of("cpu", [*resume, *elsewhere])
    assert curve(run) == pytest.approx(curve(run_of("cpu")), rel=1e-4)


def test_weights_are_written_as_they_are(run_of):
    states = []
    for kind in ("cpu", "npu_single"):
        path = next((run_of(kind) / "checkpoints").glob("step=6*"))
        states.append(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    assert all(torch.allclose(states[1][name], z, atol=1e-4) for name, z in states[0].items())


@pytest.mark.parametrize("name", ["npu_single", "npu_zero2_sp2", "npu_zero3_sp2"])
def test_configurations_as_they_are(run_of, run_arguments, name):
    """In bf16-mixed, in a process that has not imported lrsa_lightning.npu before it reads the file."""
    options = {key: value for key, value in run_arguments.items() if key != "trainer.precision"}
    devices = "1" if name == "npu_single" else "2"
    options |= {"run_name": f"{name}_bf16", "trainer.max_steps": "2", "trainer.devices": devices}
    lrsa(*command({"config": str(CONFIGS / f"{name}.yaml"), **options}))
    losses = curve(Path(run_arguments["runs_dir"]) / f"{name}_bf16")
    assert len(losses) == 2
    assert losses[2] == pytest.approx(curve(run_of("cpu"))[2], rel=0.02)
