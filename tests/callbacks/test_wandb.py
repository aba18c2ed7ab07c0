"""An offline Weights & Biases run, read back: everything is there, and each step once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrsa_lightning.callbacks import MetricsFile
from lrsa_lightning.callbacks.wandb_logger import WandbLogger
from lrsa_lightning.cli import main
from tests.runs import callback, checkpoints, command, losses, metrics
from tests.wandb_files import config, history, records

TYPED = "typed-by-the-user"
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(arguments, in_tmp_path, monkeypatch) -> Path:
    """Six steps, logged offline; resumed from the second after the fourth, as if killed there."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    ruler = {"tasks": ["niah_single_1"], "lengths": [512], "budgets": [0.5], "num_samples": 1, "every_n_steps": 2}
    callbacks = [*json.loads(checkpoints(2)), callback("RulerEval", **ruler), callback("LossCurve")]
    logger = callback("WandbLogger", project="test", save_dir=None)
    arguments["trainer.callbacks"] = json.dumps([*callbacks, callback("Throughput", window=2)])
    arguments["trainer.logger"] = json.dumps([logger, *json.loads(arguments["trainer.logger"])])
    main(command({**arguments, "trainer.max_steps": "4"}))
    wandb.finish()
    resumed = ["--ckpt_path=runs/x/checkpoints/step=2.ckpt", "--trainer.max_steps=6"]
    main(["fit", "--config=runs/x/config.yaml", *resumed])
    wandb.finish()
    return Path("runs/x")


@pytest.fixture
def logged(run) -> dict[tuple[int, str], Any]:
    """All values of the run's history by step and name, each there once."""
    values = {}
    for row in history(run):
        for key in row.keys() - {"trainer/global_step", "epoch"}:
            if not key.startswith("_"):
                assert (row["trainer/global_step"], key) not in values
                values[row["trainer/global_step"], key] = row[key]
    return values


def test_an_offline_run_holds_everything_once(run, logged):
    parts = list(run.glob("wandb/offline-run-*"))
    assert len(parts) == 2
    assert {part.name.split("-")[-1] for part in parts} == {(run / "wandb_id").read_text()}

    # The same values as in the metrics file, none missing; repeated steps keep their first values.
    train = {step: value for (step, key), value in logged.items() if key == "train/loss"}
    assert list(train) == [*range(1, 7)]
    assert train == losses()
    expected = {(row["step"], key) for row in metrics() for key in row if key not in ("step", "epoch")}
    figures = {name for name in logged if not isinstance(logged[name], dict)}
    assert figures >= expected
    assert {step for step, _ in figures - expected} <= {3, 4}  # which only the first process logged

    # Tables and images, with their files.
    media = {name: value for name, value in logged.items() if isinstance(value, dict)}
    assert [step for step, key in media if key == "ruler_predictions"] == [0, 2, 4, 6]
    assert {key for _, key in media} == {"ruler_predictions", "ruler_depths", "loss_curve"}
    for value in media.values():
        for path in value.get("filenames", [value.get("path")]):
            assert any((part / "files" / path).is_file() for part in parts)
    table = next(value["path"] for (_, key), value in media.items() if key == "ruler_predictions")
    content = json.loads(next(path for part in parts if (path := part / "files" / table).is_file()).read_text())
    assert content["data"]
    assert "prediction" in content["columns"]

    # The key went nowhere.
    assert not [path for path in Path().rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_offline_run_has_the_configuration_and_the_x_axis(run):
    own, saved = config(run), yaml.safe_load((run / "config.yaml").read_text())
    assert own["data"] == saved["data"]
    assert own["model"]["attention"]["init_args"]["lag_size"] == 16
    axes = [record.metric for record in records(run) if record.HasField("metric")]
    assert any(metric.glob_name == "*" and metric.step_metric == "trainer/global_step" for metric in axes)

    # Another run that begins with this configuration has an id of its own.
    logger = saved["trainer"]["logger"][0]["init_args"]
    assert (logger["id"], logger["save_dir"], logger["name"]) == (None, None, None)


def test_the_command_says_where_the_run_is_and_wandb_repeats_no_numbers(arguments, in_tmp_path, capfd, monkeypatch):
    import wandb

    said = []
    for quiet in (None, "false"):
        if quiet is not None:
            monkeypatch.setenv("WANDB_QUIET", quiet)  # a user who wants wandb's own summary
        loggers = json.dumps([callback("WandbLogger", project="test", save_dir=None)])
        main(command({**arguments, "run_name": f"x{quiet}", "trainer.logger": loggers, "trainer.max_steps": "1"}))
        wandb.finish()
        captured = capfd.readouterr()
        assert f"  W&B            wandb sync runs/x{quiet}/wandb/offline-run-" in captured.out
        said.append("Run summary" in captured.err)
    assert said == [False, True]


class WithToken(MetricsFile):
    """A logger that takes a secret."""

    def __init__(self, save_dir: str | None = None, token: str = ""):
        super().__init__(save_dir)
        assert token == TYPED


@pytest.mark.usefixtures("in_tmp_path")
def test_a_typed_secret_reaches_no_file(arguments, monkeypatch):
    loggers = [callback("WandbLogger", project="test", save_dir=None)]
    loggers += [{"class_path": "tests.callbacks.test_wandb.WithToken", "init_args": {"token": TYPED}}]
    words = ["lrsa", *command({**arguments, "trainer.logger": json.dumps(loggers), "trainer.max_steps": "1"})]
    monkeypatch.setattr("sys.argv", list(words))
    main()
    assert sys.argv == words
    environments = [record.environment for record in records(Path("runs/x")) if record.HasField("environment")]
    assert any("${oc.env:LRSA_TOKEN}" in word for word in environments[0].args)
    assert not [path for path in Path().rglob("*") if path.is_file() and TYPED.encode() in path.read_bytes()]
    monkeypatch.setenv("LRSA_TOKEN", TYPED)
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=last"])


def test_values_that_were_logged_are_skipped_and_new_ones_are_added(monkeypatch):
    logged = []
    monkeypatch.setattr(
        "lightning.pytorch.loggers.WandbLogger.log_metrics", lambda self, new, step: logged.append((step, new))
    )
    logger = WandbLogger(offline=True)
    logger.skip([{"step": 1, "a": 1.0}, {"step": 2, "a": 1.0}, {"step": 2, "b": 1.0}, {"step": 3, "b": 1.0}])
    for step in (1, 2, 3, 4):
        logger.log_metrics({"a": 2.0, "b": 2.0, "table": object}, step)
    assert logged[0] == (1, {"b": 2.0})
    assert [(step, list(new)) for step, new in logged[1:]] == [(3, ["a", "table"]), (4, ["a", "b", "table"])]
