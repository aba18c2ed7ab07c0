"""Adapters on several ranks: the losses and gradients of one process, and checkpoints of adapters alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrsa_lightning.trained_model import RunCheckpoint
from tests.distributed.fits import STRATEGIES, Fit, fit, strategy
from tests.distributed.test_invariance import assert_equal, subfolder
from tests.distributed.zero import curve, lrsa
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]
SETTINGS = {
    "ulysses": {},
    "context": {"use_dora": "true", "modules_to_save": "[norm, input_layernorm, lm_head]"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), tokenizer)


@pytest.fixture
def adapters(arguments, base) -> dict[str, str]:
    steps = {"trainer.max_steps": "3", "trainer.gradient_clip_val": "1", "data.micro_batch_size": "1"}
    return lora_run(arguments, base) | steps


@pytest.fixture(scope="module")
def one_process() -> dict[str, Fit]:
    """Fits on one plain process, by the kind that they are compared with."""
    return {}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_ranks_train_as_one_does(adapters, base, tmp_path, one_process, name, kind):
    options = lora_run(adapters, base, **SETTINGS[kind])
    options["trainer.callbacks"] = json.dumps([{"class_path": "tests.distributed.fits.KeepGradients"}])
    if kind not in one_process:
        one_process[kind] = fit(1, options, subfolder(tmp_path, "one"))
    several = fit(2, {**options, **strategy(name, 2, kind)}, subfolder(tmp_path, "several"))
    assert_equal(several, one_process[kind])
    assert not any(name.endswith("_proj.base_layer.weight") for name in several.gradients)


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_checkpoints_of_several_ranks_hold_adapters_alone(adapters, base, name):
    """Resumed bit by bit; the model that is evaluated is the one of a single process."""
    options = lora_run(adapters, base, **SETTINGS["context"]) | {"trainer.callbacks": EACH_STEP}
    lrsa(*command({**options, "run_name": "one", "trainer.devices": "1"}))
    several = options | strategy(name) | {"trainer.devices": "2"}
    lrsa(*command(several))
    lrsa(*command({**several, "run_name": "y", "ckpt_path": "runs/x/checkpoints/step=1.ckpt"}))
    runs = {run: RunCheckpoint(Path("runs") / run / "checkpoints" / "last.ckpt") for run in ("one", "x", "y")}
    one, x, y = (dict(run.load().named_parameters()) for run in runs.values())
    assert curve(Path("runs/y")) == {step: loss for step, loss in curve(Path("runs/x")).items() if step > 1}
    assert all(torch.equal(x[name], y[name]) for name in x)
    for name, weight in one.items():
        torch.testing.assert_close(x[name], weight, atol=1e-4, rtol=1e-4)
    assert runs["x"].weights().keys() == runs["one"].weights().keys()


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_another_number_of_ranks_goes_on_from_converted_adapters(adapters, base, name):
    several = lora_run(adapters, base) | strategy(name) | {"trainer.callbacks": EACH_STEP, "trainer.devices": "2"}
    lrsa(*command(several))
    folder, universal = (Path(f"runs/x/checkpoints/step=1.{kind}") for kind in ("ckpt", "universal"))
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    places = ["--input_folder", folder / "checkpoint", "--output_folder", universal / "checkpoint"]
    subprocess.run([*convert, *places], check=True, timeout=120, capture_output=True)
    lrsa(*command({**several, "trainer.devices": "1", "run_name": "y", "ckpt_path": str(universal)}))
    expected = {step: loss for step, loss in curve(Path("runs/x")).items() if step > 1}
    assert curve(Path("runs/y")) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "precision"), [("zero3", "bf16-mixed"), ("fsdp2", "bf16-master")])
def test_a_validation_has_the_trained_adapters(adapters, base, train_file, name, precision):
    """Its loss is the one that the run itself had at the end."""
    options = lora_run(adapters, base, **SETTINGS["context"]) | strategy(name) | {"trainer.callbacks": EACH_STEP}
    options |= {"data.val_files": str(train_file), "trainer.precision": precision, "trainer.devices": "2"}
    lrsa(*command(options | {"trainer.val_check_interval": "6", "trainer.check_val_every_n_epoch": "null"}))
    lrsa(*command(options | {"run_name": "y", "ckpt_path": "runs/x/checkpoints/last.ckpt"}, "validate"))
    (of_fit,), (of_validate,) = (curve(Path("runs") / run, "val/loss").values() for run in "xy")
    assert of_validate == pytest.approx(of_fit, rel=1e-6)
    assert of_validate < curve(Path("runs/x"))[1]
