"""Which checkpoints are kept, what a full disk does, and that they load without unpickling code."""

import errno
import json
import logging
from pathlib import Path

import pytest
import torch

from lrsa_lightning import checkpoint_files
from lrsa_lightning.callbacks import Checkpoints
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from tests.interruptions import interruption
from tests.runs import callback, command, losses

pytestmark = pytest.mark.usefixtures("in_tmp_path")
FOLDER = Path("runs/x/checkpoints")


def names() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir())


def kept(*steps: int) -> list[str]:
    return sorted(["last.ckpt", *(f"step={step}.ckpt" for step in steps)])


@pytest.fixture
def fit(arguments):
    def run(*more: dict, options: dict | None = None, **settings) -> None:
        callbacks = [*more, callback("Checkpoints", **settings)]
        main(command({**arguments, "trainer.callbacks": json.dumps(callbacks), **(options or {})}))

    return run


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every_n_steps": 2}, [2, 4, 6]),
        ({"every_n_steps": 4}, [4, 6]),  # the last step always
        ({"every_n_steps": 1, "keep_last": 2}, [5, 6]),
        ({"every_n_steps": 1, "keep_last": 1, "keep_every_n_steps": 2}, [2, 4, 6]),
    ],
)
def test_retention(fit, settings, steps):
    fit(**settings)
    assert names() == kept(*steps)
    assert (FOLDER / "last.ckpt").readlink() == Path(f"step={steps[-1]}.ckpt")


def test_a_run_that_ends_by_epochs_leaves_its_last_step(fit):
    fit(options={"trainer.max_steps": "-1", "trainer.max_epochs": "1"}, every_n_steps=4)
    assert names() == kept(4, 6)


def test_a_run_that_ends_by_time_leaves_its_last_step_and_goes_on(fit):
    settings = {"every_n_steps": 100}
    fit(options={"run_name": "whole"}, **settings)
    fit(interruption("StopAfter", step=4), options={"trainer.max_steps": "6"}, **settings)
    assert names() == kept(4)
    fit(options={"ckpt_path": "last"}, **settings)
    assert losses() == losses("whole")


def test_the_best_by_a_metric_stay_beside_the_last(fit, arguments):
    """A value that stands from an earlier step is no score of a later checkpoint."""
    values = {"1": 99.0, "2": 10.0, "3": 70.0, "4": 40.0, "5": 30.0}
    settings = {"every_n_steps": 2, "keep_last": 1, "monitor": "ruler/subset_mean"}
    fit(interruption("Measure", values=values), options={"trainer.max_steps": "8"}, **settings)
    assert names() == sorted([*kept(4, 8), "best.ckpt", "scores.json"])
    assert (FOLDER / "best.ckpt").readlink() == Path("step=4.ckpt")
    assert json.loads((FOLDER / "scores.json").read_text()) == {"2": 10.0, "4": 40.0}
    config = {"data.val_files": arguments["data.train_files"], "ckpt_path": "best"}
    main(command({**arguments, **config}, "validate"))


def test_the_best_by_the_validation_loss(fit, arguments):
    """Lightning validates when the step's checkpoint is written: the score comes after it."""
    options = {"data.val_files": arguments["data.train_files"], "trainer.val_check_interval": "4"}
    fit(every_n_steps=2, keep_last=1, monitor="val/loss", mode="min", options=options)
    scores = json.loads((FOLDER / "scores.json").read_text())
    assert set(scores) == {"2", "4", "6"}  # four micro-batches are two steps
    assert (FOLDER / "best.ckpt").readlink() == Path(f"step={min(scores, key=scores.get)}.ckpt")


def test_scores_outlive_a_resume_and_those_beyond_it_do_not(fit):
    settings = {"every_n_steps": 1, "monitor": "ruler/subset_mean"}
    fit(interruption("Measure", values={"2": 50.0, "4": 90.0}), **settings)
    again = [interruption("Measure", values={"5": 60.0}), callback("Checkpoints", **settings)]
    resume = ["fit", "--config=runs/x/config.yaml", "--ckpt_path=runs/x/checkpoints/step=3.ckpt"]
    main([*resume, f"--trainer.callbacks={json.dumps(again)}"])
    assert json.loads((FOLDER / "scores.json").read_text()) == {"2": 50.0, "5": 60.0}
    assert (FOLDER / "best.ckpt").readlink() == Path("step=5.ckpt")


def test_checkpoints_of_the_config_load_with_weights_only(fit):
    fit(interruption("Measure", values={"2": 50.0}), every_n_steps=2, monitor="ruler/subset_mean")
    state = torch.load(FOLDER / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert "hyper_parameters" not in state


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full while the checkpoint of step 4 is written."""
    write = checkpoint_files.write_whole

    def writing(checkpoint, path):
        if checkpoint["global_step"] == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(checkpoint, path)

    monkeypatch.setattr(checkpoint_files, "write_whole", writing)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(fit, full_disk, caplog):
    with caplog.at_level(logging.WARNING):
        fit(every_n_steps=2, keep_last=2)
    assert "step=4.ckpt was not saved" in caplog.text
    assert "No space left on device" in caplog.text
    assert names() == kept(2, 6)
    assert list(losses()) == list(range(6))


def test_a_full_disk_ends_the_run_where_that_was_chosen(fit, full_disk, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(every_n_steps=2, keep_last=1, on_full_disk="stop")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "step=4.ckpt was not saved" in error
    assert "Traceback" not in error
    assert names() == kept(2)


def test_numbers_are_positive():
    with pytest.raises(InputError, match="keep_last is 0"):
        Checkpoints(keep_last=0)
