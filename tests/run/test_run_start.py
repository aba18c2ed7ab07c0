"""A start that fails before its first step leaves nothing, and touches nothing."""

import json
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.run.start import MARKER, RunStart
from tests.interruptions import interruption
from tests.runs import callback, command, everything, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RUN = Path("runs/x")


FAILURES = {
    "callback that fails in setup": {"trainer.callbacks": json.dumps([callback("LossCurve", reference="nowhere")])},
    "no such device": {"trainer.accelerator": "cuda"},
    "optimizer": {"model.betas": "[2.0, 0.9]"},
    "first step": {"trainer.callbacks": json.dumps([interruption("FailsAtOnce")])},
    "bad data": {"data.train_files": "broken.jsonl"},
    "signal": {"trainer.callbacks": json.dumps([interruption("SignalAtBatch", signal="SIGTERM", batch=0)])},
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_start_that_fails_leaves_its_name_free(arguments, how):
    import wandb

    Path("broken.jsonl").write_text("{broken\n")
    logger = [callback("WandbLogger", project="test", save_dir=None), *json.loads(arguments["trainer.logger"])]
    arguments |= {"trainer.logger": json.dumps(logger), "trainer.max_steps": "2"}
    with pytest.raises((SystemExit, Exception)):
        main(command({**arguments, **FAILURES[how]}))
    assert not RUN.exists()
    assert wandb.run is None
    main(command(arguments))
    assert list(losses()) == [1, 2]
    assert not (RUN / MARKER).exists()
    assert len(list(RUN.glob("wandb/offline-run-*"))) == 1


def test_a_failure_after_the_first_step_leaves_the_run(arguments, capsys):
    steps = json.dumps([interruption("FailsAtOnce", step=1)])
    with pytest.raises(RuntimeError):
        main(command({**arguments, "trainer.callbacks": steps}))
    assert list(losses()) == [1]
    assert "holds a run already" in refusal(capsys, command(arguments))


def test_the_files_of_a_killed_start_are_cleared(arguments):
    """After `kill -9` no process could clear them."""
    start = RunStart(RUN)
    start.begin()
    (RUN / "config.yaml").write_text("run_name: x\n")
    (RUN / "wandb").mkdir()
    main(command({**arguments, "trainer.max_steps": "1"}))
    assert list(losses()) == [1]
    assert not (RUN / "wandb").exists()
    assert not (RUN / "config-1.yaml").exists()


def test_a_failed_start_does_not_touch_earlier_files():
    (RUN / "notes").mkdir(parents=True)
    (RUN / "notes/mine").write_text("mine")
    (RUN / "config.yaml").write_text("earlier")
    before = everything(RUN)
    start = RunStart(RUN)
    start.begin()
    (RUN / "config-1.yaml").touch()
    (RUN / "ruler").mkdir()
    start.undo()
    assert everything(RUN) == before
    start.undo()  # without a marker
    assert everything(RUN) == before


def test_measurements_of_a_failed_start_are_set_aside():
    start = RunStart(RUN)
    start.begin()
    (RUN / "ruler").mkdir()
    (RUN / "ruler/step-000000.jsonl").write_text("{}\n")
    (RUN / "config.yaml").touch()
    start.undo()
    assert not RUN.exists()
    assert {path.name for path in Path("runs/.set_aside/x-1").iterdir()} == {"ruler", "config.yaml"}


def test_a_resume_that_fails_leaves_the_run_as_it_was(two_steps):
    """Otherwise the next resume would be compared with its configuration."""
    before = everything(RUN)
    resume = {**two_steps, "ckpt_path": "last", "trainer.max_steps": "3"}
    failing = {"seed_everything": "7", "allow_mismatch": "true"}
    with pytest.raises(RuntimeError):
        main(
            command(
                {**resume, **failing, "trainer.callbacks": json.dumps([interruption("FailsAtOnce", step=2, batch=1)])}
            )
        )
    assert everything(RUN) == before
    main(command(resume))
    assert list(losses()) == [1, 2, 3]


def test_a_failed_start_from_another_runs_checkpoint_leaves_nothing(two_steps):
    failing = {"run_name": "y", "ckpt_path": "runs/x/checkpoints/last.ckpt", "trainer.max_steps": "3"}
    with pytest.raises(RuntimeError):
        main(
            command(
                {
                    **two_steps,
                    **failing,
                    "trainer.callbacks": json.dumps([interruption("FailsAtOnce", step=2, batch=1)]),
                }
            )
        )
    assert not Path("runs/y").exists()


def test_a_start_with_a_checkpoint_is_a_run():
    start = RunStart(RUN)
    start.begin()
    (RUN / "checkpoints").mkdir()
    (RUN / "checkpoints/step=1.ckpt").write_bytes(b"corrupt")
    start.undo()
    assert (RUN / "checkpoints/step=1.ckpt").exists()
    assert not (RUN / MARKER).exists()
