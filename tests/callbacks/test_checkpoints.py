"""Which checkpoints are kept, what a full disk does, and that they load without unpickling code."""

import errno
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning.callbacks import Checkpoints
from lrsa_lightning.checkpoints import atomic_files
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from tests.interruptions import Keeps, interruption
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
    """A value of an earlier step is not a score of a later checkpoint."""
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


def test_a_resume_keeps_only_the_scores_before_it(fit):
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


def test_callback_state_with_a_plain_form_is_saved(fit, caplog):
    fit(interruption("Keeps", what="numpy"), every_n_steps=2, options={"trainer.max_steps": "2"})
    assert torch.load(FOLDER / "last.ckpt", weights_only=True)["callbacks"]["Keeps"]["best"]["score"] == 0.5
    assert "callbacks['Keeps']['best']['file'], a PosixPath, is kept in checkpoints as text" in caplog.text
    assert "`weights_only` was not set" not in caplog.text
    fit(interruption("Keeps", what="numpy"), every_n_steps=2, options={"ckpt_path": "last"})
    loaded = Keeps.loaded["best"]
    assert (loaded["score"], loaded["file"], loaded["curve"].tolist()) == (0.5, "a/b", [0.0, 1.0, 2.0])
    assert list(losses()) == [*range(1, 7)]


def test_callback_state_without_a_plain_form_is_refused_before_the_first_step(fit, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(interruption("Keeps", what="moment"))
    assert caught.value.code == 2
    assert "callbacks['Keeps']['best']['at'] is a datetime (keep its .isoformat() instead)" in capsys.readouterr().err
    assert not Path("runs/x/metrics.jsonl").exists()
    assert not FOLDER.exists()


def test_callback_state_that_becomes_unsavable_ends_the_run_without_losing_a_step(fit, capsys, caplog):
    with pytest.raises(SystemExit) as caught:
        fit(interruption("Keeps", what="moment", since=3), every_n_steps=2)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "callbacks['Keeps']['best']['at'] is a datetime" in error
    assert "step=4.ckpt was saved without it" in error
    assert names() == kept(2, 4)
    fit(interruption("Keeps", what="plain"), every_n_steps=2, options={"ckpt_path": "last"})
    assert "the checkpoint of step 4 was saved without callbacks['Keeps']" in caplog.text
    assert list(losses()) == [*range(1, 7)]


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full while the checkpoint of a step is written; of step 4 at first."""
    write, at = atomic_files.write_synced, {"step": 4, "number": errno.ENOSPC}

    def writing(checkpoint, path):
        if checkpoint["global_step"] == at["step"]:
            path.write_bytes(b"half")
            raise OSError(at["number"], os.strerror(at["number"]))
        write(checkpoint, path)

    monkeypatch.setattr(atomic_files, "write_synced", writing)
    return at


def test_an_unsaved_last_step_is_an_error(fit, full_disk, capsys):
    """The checks after the last step still run."""
    full_disk |= {"step": 6, "number": errno.EROFS}
    with pytest.raises(SystemExit) as caught:
        fit(callback("LossCurve"), every_n_steps=2)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "the last step, 6, was not saved ([Errno 30]" in error
    assert "step 4 is safe in runs/x/checkpoints/step=4.ckpt" in error
    assert names() == kept(2, 4)
    assert Path("runs/x/loss_curve.png").exists()
    full_disk["step"] = None
    fit(every_n_steps=2, options={"ckpt_path": "last"})
    assert list(losses()) == [*range(1, 7)]
    assert names() == kept(2, 4, 6)


def test_a_full_disk_loses_a_checkpoint_but_not_the_run(fit, full_disk, caplog):
    with caplog.at_level(logging.WARNING):
        fit(every_n_steps=2, keep_last=2)
    assert caplog.text.count("step=4.ckpt was not saved") == 1
    assert "No space left on device" in caplog.text
    assert names() == kept(2, 6)
    assert list(losses()) == [*range(1, 7)]


def test_a_full_disk_ends_the_run_if_configured(fit, full_disk, capsys):
    with pytest.raises(SystemExit) as caught:
        fit(every_n_steps=2, keep_last=1, on_full_disk="stop")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "step=4.ckpt was not saved" in error
    assert "Traceback" not in error
    assert names() == kept(2)


@pytest.mark.parametrize("name", ["every_n_steps", "keep_last", "keep_every_n_steps", "keep_best"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_numbers_must_be_positive(name, value):
    with pytest.raises(InputError, match=rf"Checkpoints\.{name} is {value}, but must be a whole number of at least 1"):
        Checkpoints(**{name: value})


@pytest.mark.parametrize("option", [{"mode": "largest"}, {"on_full_disk": "wait"}])
def test_unknown_words_are_refused(option):
    with pytest.raises(InputError, match="but must be one of"):
        Checkpoints(**option)


def test_checkpoints_of_later_steps_are_not_pruned_after_a_resume(fit):
    """The new checkpoint is never removed, and last.ckpt names it."""
    fit(every_n_steps=2)
    assert names() == kept(2, 4, 6)
    (FOLDER / "step=6-copy.ckpt").write_bytes(b"my own")
    (FOLDER / "step=6-copy.ckpt").chmod(0o600)
    path = str(FOLDER / "step=2.ckpt")
    fit(every_n_steps=1, keep_last=1, options={"ckpt_path": path, "trainer.max_steps": "3"})
    assert names() == sorted([*kept(3, 4, 6), "step=6-copy.ckpt"])
    assert (FOLDER / "last.ckpt").readlink() == Path("step=3.ckpt")


@pytest.mark.parametrize("none", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_no_score(none):
    saved = Checkpoints(monitor="m", dirpath="c")
    saved.setup(SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=None)), None, "fit")
    saved._kept.newest = 3
    trainer = SimpleNamespace(callback_metrics={"m": torch.tensor(none)}, global_step=3, is_global_zero=True)
    saved._score(trainer)
    assert saved.best_model_path == ""
    assert not Path("c").exists()


def measured(monitor: str, fit, step: int = 2, **settings) -> None:
    fit(interruption("Measure", values={str(step): 50.0}), every_n_steps=2, monitor=monitor, **settings)


@pytest.mark.parametrize(("monitor", "when"), [("ruler/subset_maen", 2), ("no/such", 2), ("val/los", None)])
def test_an_unknown_monitor_is_reported_at_once_and_at_the_end(fit, caplog, monitor, when):
    measured(monitor, fit)
    said = [record.getMessage() for record in caplog.records if "Checkpoints.monitor" in record.getMessage()]
    assert all(f"{monitor} was not logged; metrics so far are " in text for text in said)
    assert all("train/loss" in text or "ruler/subset_mean" in text for text in said)
    assert ["until it is logged" in text for text in said] == ([True, False] if when else [False])
    assert "no checkpoint was kept as the best" in said[-1]


def test_monitoring_the_validation_loss_needs_validation_files(fit, capsys):
    with pytest.raises(SystemExit):
        fit(monitor="val/loss")
    assert "Checkpoints.monitor val/loss will not be logged, for data.val_files is empty" in capsys.readouterr().err


def test_a_monitor_that_is_logged_late_is_accepted(fit, caplog):
    measured("ruler/subset_mean", fit, step=6)
    assert "Checkpoints.monitor" not in caplog.text


def test_a_monitor_missing_in_the_first_check_is_refused(fit, capsys):
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], budgets=[0.5], num_samples=1)
    with pytest.raises(SystemExit) as caught:
        fit(ruler, monitor="ruler/subset_maen")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert (
        "Checkpoints.monitor ruler/subset_maen was not logged; metrics so far are ruler/niah_single_1/512/r0.5" in error
    )
    assert losses(".set_aside/x-1") == {}
