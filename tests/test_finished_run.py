"""A resume of a finished run makes up for what was broken off after its last step, and says that it is finished."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest

from lrsa_lightning.callbacks import ruler_check
from lrsa_lightning.cli import main
from tests.interruptions import interruption
from tests.processes import on_lines
from tests.runs import callback, command, losses, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RULER = {"tasks": ["niah_single_1"], "lengths": [512], "budgets": [0.5], "num_samples": 1, "every_n_steps": 4}


@pytest.fixture
def fit(arguments, caplog):
    """Runs of six steps, an epoch; the exit status of the command, and whether it said that the run is finished."""

    def run(*callbacks: dict, **options: str) -> tuple[int, bool]:
        caplog.clear()
        entries = json.dumps([*callbacks, callback("Checkpoints", every_n_steps=100)])
        status = 0
        try:
            with caplog.at_level(logging.WARNING):
                main(command({**arguments, "trainer.callbacks": entries, **options}))
        except SystemExit as stopped:
            status = stopped.code
        return status, "runs/x is finished: step 6 is its last" in caplog.text

    return run


def files(run: Path = Path("runs/x")) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_nothing_else_happens(fit):
    assert fit() == (0, False)
    before = files()
    assert fit(ckpt_path="last") == (0, True)
    assert files() == before
    assert fit(ckpt_path="last", **{"trainer.max_steps": "7"}) == (0, False)
    assert list(losses()) == [*range(1, 8)]


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
def test_a_missing_ruler_check_after_the_last_step_is_made_up_for(fit, monkeypatch, train_file, limit):
    """And a validation that was made before it is not made again."""
    ruler = callback("RulerEval", **RULER)
    options = {"data.val_files": str(train_file)}
    options |= {} if limit == "max_steps" else {"trainer.max_steps": "-1", "trainer.max_epochs": "1"}
    fit(ruler, run_name="whole", **options)
    raise_if_signalled = ruler_check.raise_if_signalled

    def strike(trainer) -> None:
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        raise_if_signalled(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(ruler_check, "raise_if_signalled", strike)
        assert fit(ruler, **options) == (143, False)
    assert fit(ruler, ckpt_path="last", **options) == (0, True)
    assert [row for row in metrics() if row["step"] == 6] == [row for row in metrics("whole") if row["step"] == 6]
    assert "ruler/niah_single_1/512/r0.5" in metrics()[-1]
    before = files()
    assert fit(ruler, ckpt_path="last", **options) == (0, True)
    assert files() == before


def scores(run: str = "x") -> list[tuple[int, float]]:
    return [(row["step"], row["val/loss"]) for row in metrics(run) if "val/loss" in row]


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
def test_a_missing_validation_after_the_last_step_is_made_up_for(fit, train_file, limit):
    """And a RULER check that was made before it is not made again."""
    ruler = callback("RulerEval", **RULER | {"every_n_steps": 6, "generation": "never"})
    options = {"data.val_files": str(train_file)}
    options |= {} if limit == "max_steps" else {"trainer.max_steps": "-1", "trainer.max_epochs": "1"}
    fit(run_name="whole", **options)
    assert fit(ruler, interruption("SignalInValidation", signal="SIGTERM", batch=1), **options) == (143, False)
    assert scores() == []
    assert fit(ruler, ckpt_path="last", **options) == (0, True)
    assert scores() == [(step, pytest.approx(loss)) for step, loss in scores("whole")]
    assert len([row for row in metrics() if "ruler_nll/subset_mean" in row]) == 2  # before the first step, and the last
    before = files()
    assert fit(ruler, ckpt_path="last", **options) == (0, True)
    assert files() == before


def test_a_validation_that_was_not_due_is_not_made_up_for(fit, train_file):
    options = {"data.val_files": str(train_file), "trainer.val_check_interval": "8"}
    fit(**options)
    before = scores()
    assert [step for step, _ in before] == [4]
    assert fit(ckpt_path="last", **options) == (0, True)
    assert scores() == before


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sp_fsdp2", "sp_deepspeed"])
def test_processes_make_up_for_checks_together(arguments, train_file, strategy):
    ruler = callback("RulerEval", **RULER | {"num_samples": 2})
    entries = json.dumps([ruler, callback("Checkpoints", every_n_steps=100)])
    options = {**arguments, "data.micro_batch_size": "1", "trainer.max_steps": "2", "trainer.callbacks": entries}
    options |= {"data.val_files": str(train_file), "trainer.val_check_interval": "4", "trainer.devices": "2"}
    options |= {"trainer.strategy": strategy, "ckpt_path": "last"}
    assert [process.status for process in on_lines([command(options)] * 2)] == [0, 0]
    whole = {key: value for row in metrics() if row["step"] == 2 for key, value in row.items()}
    (Path("runs/x/ruler") / "step-000002.jsonl").unlink()
    rows = [row for row in metrics() if not any(key.startswith(("ruler", "val")) for key in row) or row["step"] == 0]
    Path("runs/x/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        ended = on_lines([command(options)] * 2)
        assert [process.status for process in ended] == [0, 0], ended[0].err
        assert "runs/x is finished: step 2 is its last" in ended[0].err
        again = {key: value for row in metrics() if row["step"] == 2 for key, value in row.items()}
        assert again["val/loss"] == pytest.approx(whole["val/loss"], abs=1e-4)
        assert again.keys() >= {key for key in whole if key.startswith("ruler")}
        assert len([row for row in metrics() if "val/loss" in row]) == 1
