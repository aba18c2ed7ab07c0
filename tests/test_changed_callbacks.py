"""Callbacks and loggers of a list, left out or changed by name on the command line."""

import json
from pathlib import Path

import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from tests.refusals import cases, refused
from tests.runs import callback, command


def classes(trainer_part: list) -> list[str]:
    return [type(each).__name__ for each in trainer_part]


def made(arguments: dict, **options: str):
    given = {key: value for key, value in arguments.items() if key not in ("trainer.callbacks", "trainer.logger")}
    return LRSACLI(command({**given, **options})[1:], run=False).trainer


def test_a_callback_is_left_out_or_changed_by_name(arguments, in_tmp_path):
    whole = classes(made(arguments).callbacks)
    assert {"RulerEval", "Checkpoints", "LossCurve"} <= {*whole}
    options = {
        "callbacks.ruler": "null",
        "callbacks.loss_curve": "null",
        "callbacks.Checkpoints": '{"every_n_steps": 3}',
    }
    trainer = made(arguments, wandb="false", **options)
    assert classes(trainer.callbacks) == [name for name in whole if name not in ("RulerEval", "LossCurve")]
    (kept,) = [each for each in trainer.callbacks if type(each).__name__ == "Checkpoints"]
    assert kept.every_n_steps == 3
    assert classes(trainer.loggers) == ["MetricsFile"]


def test_a_file_leaves_out_and_changes_too(arguments, in_tmp_path):
    Path("changes.yaml").write_text("callbacks: {ruler: null, checkpoints: {every_n_steps: 3}}\nwandb: false\n")
    trainer = made(arguments, config="changes.yaml")
    assert "RulerEval" not in classes(trainer.callbacks)
    assert next(each for each in trainer.callbacks if type(each).__name__ == "Checkpoints").every_n_steps == 3
    assert classes(trainer.loggers) == ["MetricsFile"]


def test_a_run_saves_the_list_as_it_runs_and_resumes_from_it(arguments, in_tmp_path):
    names = [callback("Checkpoints"), callback("LossCurve"), callback("StepProgress")]
    arguments |= {"trainer.callbacks": json.dumps(names), "callbacks.loss": "null", "trainer.max_steps": "1"}
    main(command(arguments | {"callbacks.checkpoints": '{"keep_last": 2}'}))
    saved = yaml.safe_load(Path("runs/x/config.yaml").read_text())["trainer"]["callbacks"]
    assert [each["class_path"].rpartition(".")[2] for each in saved] == ["Checkpoints", "StepProgress"]
    assert saved[0]["init_args"]["keep_last"] == 2
    main(["fit", "--config", "runs/x/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "2"])
    assert Path("runs/x/checkpoints/step=2.ckpt").exists()
    assert not Path("runs/x/loss_curve.png").exists()


@cases(
    [
        ({"callbacks.rular": "null"}, "callbacks.rular is none of the callbacks", "LossCurve"),
        ({"callbacks.checkpoints": '{"every": 3}'}, "callbacks.checkpoints takes no every, but ", "every_n_steps"),
        (
            {"callbacks.checkpoints": '{"every_n_steps": 0}'},
            "checkpoints: every_n_steps is 0, but must be",
        ),
        ({"callbacks.checkpoints": "3"}, "callbacks"),
        (
            {"trainer.callbacks": json.dumps([callback("LossCurve")] * 2), "callbacks.loss": "null"},
            "callbacks.loss means several of",
        ),
        ({"wandb": "perhaps"}, "wandb", "true or false"),
    ]
)
def test_bad_input_is_one_line(capsys, arguments, in_tmp_path, wrong, said):
    given = {key: value for key, value in arguments.items() if key != "trainer.callbacks"}
    refused(capsys, lambda: main(command(given | wrong)), *said)
