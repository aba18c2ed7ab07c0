"""A resumed run goes on exactly where its checkpoint was, again and again, however its batches are cut."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lrsa_lightning.cli import LRSACLI, main
from tests.runs import checkpoints, command, kept_curve, losses

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_a_resumed_run_equals_the_uninterrupted_one(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command({**arguments, "run_name": "whole"}))
    main(command(arguments))
    run = Path("runs/x")
    # As a run killed after step 4 left it: logged beyond its last checkpoint, which is of step 2.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 4))
    curve = '[{"class_path": "lrsa_lightning.callbacks.LossCurve"}]'
    main(
        [
            "fit",
            f"--config={run / 'config.yaml'}",
            f"--trainer.callbacks+={curve}",
            f"--ckpt_path={run}/checkpoints/step=2.ckpt",
        ]
    )
    assert losses("x") == losses("whole")
    states = [torch.load(Path("runs") / r / "checkpoints/step=6.ckpt", weights_only=True) for r in ("whole", "x")]
    first, second = (state["state_dict"] for state in states)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (run / "config-1.yaml").exists()


@pytest.mark.parametrize("stops", [[3, 9], [6, 12], [5, 6, 7]], ids=["mid-epoch", "epoch boundary", "both"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_resume_goes_on_with_the_next_unseen_sample(arguments, stops, workers):
    """An epoch has six steps; a resume from a step that a resumed run reached must be as exact as the first one."""
    arguments |= {"trainer.callbacks": kept_curve(), "trainer.max_steps": "14", "data.num_workers": workers}
    main(command(arguments))
    whole = losses()
    for stop in stops:
        main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
        assert losses() == whole


@pytest.mark.parametrize("stop", [4, 6, 8])
@pytest.mark.parametrize("micro", ["1", "4"])
def test_a_resume_may_change_how_a_global_batch_is_cut(arguments, stop, micro):
    """As another number of ranks does: the checkpoint's count of micro-batches then means something else."""
    arguments |= {"trainer.callbacks": kept_curve(), "trainer.max_steps": "14"}
    main(command(arguments))
    whole = losses()
    change = f"--data.micro_batch_size={micro}"
    main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt", change])
    assert losses() == pytest.approx(whole, abs=1e-4)
    # Lightning has written that checkpoint again, after the first micro-batch.
    main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
    assert losses() == pytest.approx(whole, abs=1e-4)
    state = torch.load("runs/x/checkpoints/step=8.ckpt", weights_only=True)
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"seed": 42, "epoch": 1, "consumed": 8}]


def test_last_resumes_from_the_newest_checkpoint(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command(arguments))
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=last", "--trainer.max_steps=8"])
    assert list(losses()) == list(range(8))


def test_a_checkpoint_does_not_override_the_command_line(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command(arguments))
    cli = LRSACLI(
        command(
            {
                **arguments,
                "run_name": "y",
                "model.lr": "0.5",
                "trainer.max_steps": "7",
                "ckpt_path": "runs/x/checkpoints/step=6.ckpt",
            }
        )
    )
    assert cli.model.lr == 0.5
    assert yaml.safe_load(Path("runs/y/config.yaml").read_text())["model"]["lr"] == 0.5
