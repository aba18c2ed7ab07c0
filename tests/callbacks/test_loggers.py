"""Loggers besides the usual ones: missing packages, the metrics file, and pictures."""

import json
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger
from matplotlib.image import imsave

from lrsa_lightning.callbacks.pictures import log_picture
from lrsa_lightning.cli import main
from lrsa_lightning.commands import loggers
from tests.runs import callback, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
CURVE = json.dumps([callback("LossCurve")])
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}


@pytest.fixture
def picture() -> tuple[Path, np.ndarray]:
    """A file of 4 x 3 pixels, and these: float [height, width, channels]."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    imsave("picture.png", pixels)
    return Path("picture.png"), pixels / 255


def test_a_run_without_wandb_says_so_and_logs_to_its_file(arguments, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    both = json.dumps([callback("WandbLogger", project="test"), callback("MetricsFile")])
    main(command({**arguments, "trainer.logger": both, "trainer.max_steps": "1"}))
    assert [record.message for record in caplog.records if "wandb is not installed" in record.message]
    assert list(losses()) == [1]
    assert not Path("runs/x/wandb").exists()
    assert "WandbLogger" in Path("runs/x/config.yaml").read_text()  # a resume elsewhere may log there


@pytest.mark.parametrize("logger", [CSV, [CSV]])
def test_every_run_with_a_logger_has_the_metrics_file_and_the_curve(arguments, logger):
    options = {"trainer.logger": json.dumps(logger), "trainer.callbacks": CURVE, "trainer.max_steps": "2"}
    main(command({**arguments, **options}))
    assert list(losses()) == [1, 2]
    assert (Path("runs/x") / "loss_curve.png").exists()
    (rows,) = Path("runs/x").rglob("metrics.csv")
    assert "train/loss" in rows.read_text()


def test_a_run_without_loggers_writes_no_metrics(arguments):
    main(command({**arguments, "trainer.logger": "false", "trainer.max_steps": "1"}))
    assert not Path("runs/x/metrics.jsonl").exists()


def test_a_missing_package_of_another_logger_is_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    error = refusal(capsys, command({**arguments, "trainer.logger": "MLFlowLogger"}))
    assert [line for line in error.splitlines() if "MLFlowLogger" in line] == error.splitlines()[-1:]


def test_pictures_go_where_each_logger_takes_them(picture):
    path, pixels = picture
    kinds = (TensorBoardLogger, MLFlowLogger, CometLogger)
    board, flow, comet = (create_autospec(kind, instance=True) for kind in kinds)
    for logger in (board, flow, comet, CSVLogger(".")):
        log_picture(logger, "curve", path, 7)
    (name, shown, step), how = board.experiment.add_image.call_args
    np.testing.assert_allclose(shown, pixels, atol=1e-6)
    assert (name, step, how) == ("curve", 7, {"dataformats": "HWC"})
    (run, shown), how = flow.experiment.log_image.call_args
    np.testing.assert_allclose(shown, pixels, atol=1e-6)
    assert (run, how) == (flow.run_id, {"key": "curve", "step": 7})
    comet.experiment.log_image.assert_called_once_with("picture.png", name="curve", step=7)


def test_tensorboard_reads_the_curve_of_a_run(arguments):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "."}}
    options = {"trainer.logger": json.dumps(board), "trainer.callbacks": CURVE, "trainer.max_steps": "2"}
    main(command({**arguments, **options}))
    read = events.EventAccumulator("runs/x/lightning_logs/version_0", size_guidance={"images": 0}).Reload()
    assert [image.step for image in read.Images("loss_curve")] == [2]
