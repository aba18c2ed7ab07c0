"""ZeRO's checkpoint folders: complete or absent, kept by the same rules as files, and resumed from exactly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrsa_lightning.checkpoints.last import find_last
from lrsa_lightning.cli import main
from lrsa_lightning.distributed.zero_files import read_client_state
from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.export import export
from lrsa_lightning.run.directory import RunDirectory
from lrsa_lightning.trained_model import load_checkpoint
from tests.distributed.zero import callback, curve, lrsa, zero
from tests.interruptions import interruption
from tests.runs import callback as ours

pytestmark = pytest.mark.slow


@pytest.fixture
def copy_of(run_of_stage, tmp_path):
    """A copy of a finished run that may be changed."""

    def copy(stage: int) -> Path:
        return shutil.copytree(run_of_stage(stage), tmp_path / "runs" / f"stage-{stage}", symlinks=True)

    return copy


def resume(run: Path, ckpt_path: str, *options: str, fails: bool = False) -> str:
    config = ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={ckpt_path}"]
    # The configuration names the original run's folder of checkpoints.
    callbacks = json.dumps([ours("Checkpoints", every_n_steps=2, dirpath=str(run / "checkpoints"))])
    return lrsa(*config, f"--trainer.callbacks={callbacks}", *options, fails=fails)


def test_rules_of_keeping_hold_for_folders(run_of_stage):
    folder = run_of_stage(2) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=4.ckpt", "step=6.ckpt", "step=7.ckpt"]
    assert (folder / "last.ckpt").resolve() == (folder / "step=7.ckpt").resolve()
    written = json.loads((folder / "step=7.ckpt" / "written.json").read_text())
    assert (written["step"], written["world_size"], written["stage"]) == (7, 2, 2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resume_is_bit_exact(copy_of, run_of_stage, stage):
    """Within an epoch of six steps and across its end. The resume removes an interrupted write."""
    run = copy_of(stage)
    shutil.rmtree(run / "checkpoints" / "step=6.ckpt")
    (run / "checkpoints" / "step=7.ckpt").rename(run / "checkpoints" / ".step=5.ckpt.partial")
    resume(run, "last")
    assert curve(run) == curve(run_of_stage(stage))
    assert curve(run, "train/grad_norm") == curve(run_of_stage(stage), "train/grad_norm")
    assert not (run / "checkpoints" / ".step=5.ckpt.partial").exists()
    first, second = (weights(directory) for directory in (run, run_of_stage(stage)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "step=7.ckpt").model.state_dict()


def test_a_corrupt_folder_is_skipped_and_refused(copy_of):
    folder = copy_of(2) / "checkpoints"
    newest = folder / "step=7.ckpt"
    shard = next((newest / "checkpoint").glob("*_1_*optim_states.pt"))
    os.truncate(shard, shard.stat().st_size - 1)
    last = find_last(folder)
    assert (last.path, last.skipped) == (folder / "step=6.ckpt", ["step=7.ckpt"])
    with pytest.raises(InputError, match="corrupt"):
        RunDirectory(folder.parent).checkpoint(str(newest))
    with pytest.raises(InputError, match="corrupt"):
        load_checkpoint(newest)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_folder_becomes_a_model_for_transformers(run_of_stage, tmp_path, stage):
    """The weights equal the checkpoint's bit for bit, and those of one process after as many steps."""
    export(run_of_stage(stage), tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto").state_dict()
    own, plain = weights(run_of_stage(stage)), weights(run_of_stage(0))
    assert exported.keys() == own.keys() == plain.keys()
    assert all(torch.equal(exported[name], own[name]) for name in own)
    assert all(torch.allclose(own[name], plain[name], atol=1e-4) for name in own)


def test_a_validation_has_the_checkpoints_weights(run_of_stage, zero_arguments):
    """Under ZeRO-3, where DeepSpeed fails without an optimizer; on one process, while two wrote the folder."""
    losses = []
    for source, strategy in ((run_of_stage(0), "auto"), (run_of_stage(3), zero(3))):
        name = f"validated-{source.name}"
        options = {"ckpt_path": source / "checkpoints" / "step=7.ckpt", "run_name": name}
        options |= {"data.val_files": zero_arguments["data.train_files"], "trainer.devices": 1}
        options |= {"trainer.strategy": strategy, "trainer.callbacks": "[]"}
        lrsa("validate", *(f"--{key}={value}" for key, value in (zero_arguments | options).items()))
        losses += curve(Path(zero_arguments["runs_dir"]) / name, "val/loss").values()
    plain, under_zero = losses
    assert under_zero == pytest.approx(plain, abs=1e-4)
    assert under_zero < 5  # untrained it is 5.7


def test_another_number_of_processes_goes_on_from_a_universal_folder(copy_of, run_of_stage):
    run = copy_of(2)
    source = run / "checkpoints" / "step=4.ckpt"
    said = resume(run, str(source), "--trainer.devices=1", fails=True)
    assert "was written by 2 processes, and this run has 1" in said
    assert "Traceback" not in said
    (command,) = (line.split() for line in said.splitlines() if "ds_to_universal" in line)
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120, capture_output=True)
    resume(run, str(run / "checkpoints" / "step=4.universal"), "--trainer.devices=1")
    assert list(curve(run)) == [*range(1, 8)]
    assert curve(run) == pytest.approx(curve(run_of_stage(2)), abs=5e-6)
    options = ["--trainer.devices=1", f"--trainer.strategy={zero(3)}"]
    said = resume(run, str(run / "checkpoints" / "step=4.universal"), *options, fails=True)
    assert "is of ZeRO-1 or 2, the strategy's stage is 3" in said
    assert "Traceback" not in said


def test_a_full_disk_of_one_rank_leaves_the_folders_before_it(copy_of):
    """Both ranks continue, and neither waits for the other. A last step that is not saved is an error."""
    run = copy_of(2)
    checkpoints = ours("Checkpoints", every_n_steps=1, dirpath=str(run / "checkpoints"))
    callbacks = [checkpoints, callback("FullDisk", rank=1, step=6)]
    options = [f"--trainer.callbacks={json.dumps(callbacks)}"]
    said = resume(run, str(run / "checkpoints" / "step=4.ckpt"), *options, fails=True)
    assert said.count("step=6.ckpt was not saved ([Errno 28] No space left on device)") == 1
    assert "the last step, 7, was not saved ([Errno 28] No space left on device); step 5 is safe in" in said
    assert "Traceback" not in said
    folder = run / "checkpoints"
    assert (folder / "last.ckpt").resolve() == (folder / "step=5.ckpt").resolve()
    assert not list(folder.glob(".*"))
    assert list(curve(run)) == [*range(1, 8)]


def test_a_folder_holds_plain_data_too(copy_of):
    """numpy's numbers become plain ones. State without a plain form ends the run on all ranks, after the save."""
    run = copy_of(2)
    keeps = [
        interruption("Keeps", what="numpy"),
        ours("Checkpoints", every_n_steps=1, dirpath=str(run / "checkpoints")),
    ]
    options = ["--trainer.max_steps=8", f"--trainer.callbacks={json.dumps(keeps)}"]
    resume(run, "last", *options)
    assert read_client_state(run / "checkpoints" / "step=8.ckpt")["callbacks"]["Keeps"]["best"]["score"] == 0.5
    keeps[0] = interruption("Keeps", what="moment", since=9)
    options = ["--trainer.max_steps=10", f"--trainer.callbacks={json.dumps(keeps)}"]
    said = resume(run, "last", *options, fails=True)
    assert said.count("step=9.ckpt was saved without it") == 2
    assert find_last(run / "checkpoints").path.name == "step=9.ckpt"
    assert "is finished: step 9 is its last" in resume(run, "last", "--trainer.max_steps=9")


def test_a_folder_needs_the_strategy_that_wrote_it(copy_of, capsys):
    run = copy_of(2)
    folder = str(run / "checkpoints" / "step=4.ckpt")
    config = ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={run.parent}", f"--ckpt_path={folder}"]
    with pytest.raises(SystemExit):
        main([*config, "--trainer.devices=1", "--trainer.strategy=auto"])
    assert "resume it with trainer.strategy sp_deepspeed" in capsys.readouterr().err
    said = resume(run, folder, f"--trainer.strategy={zero(1)}", fails=True)
    assert "is of ZeRO-2, the strategy's stage is 1" in said
    assert "Traceback" not in said
