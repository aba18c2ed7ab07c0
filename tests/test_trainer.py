"""Lightning's Trainer with ranges, in Python; tests/test_bad_input.py has the command's."""

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.errors import InputError
from lrsa_lightning.trainer import RangedTrainer
from tests.runs import command

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_steps", -5),
        ("gradient_clip_val", float("nan")),
        ("log_every_n_steps", 0),
        ("devices", 0),
        ("devices", "0"),
        ("devices", "two"),
        ("val_check_interval", 0.0),
        ("val_check_interval", "soon"),
        ("limit_train_batches", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises(InputError, match=rf"RangedTrainer\.{argument} is "):
        RangedTrainer(**{argument: value}, **QUIET)


@pytest.mark.parametrize("devices", ["auto", 1, "1"])
def test_devices_reach_lightning_in_its_form(devices):
    assert RangedTrainer(devices=devices, **QUIET).num_devices == 1


def test_valid_values_are_accepted():
    trainer = RangedTrainer(
        devices=1, max_steps=0, max_epochs=-1, limit_val_batches=0, val_check_interval="00:01:00:00", **QUIET
    )
    assert (trainer.max_steps, trainer.max_epochs, trainer.limit_val_batches) == (0, -1, 0)
    assert trainer.num_devices == 1


def test_help_shows_the_ranges(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    said = capsys.readouterr().out
    assert "CountOrEndless" in said
    assert "NonNegativeFiniteFloat" in said


def test_saved_values_are_plain(arguments, in_tmp_path):
    cli = LRSACLI(command({**arguments, "trainer.devices": "1", "trainer.limit_val_batches": "0.5"})[1:], run=False)
    saved = yaml.safe_load(cli.parser.dump(cli.config))
    assert saved["trainer"]["devices"] == 1
    assert saved["trainer"]["limit_val_batches"] == 0.5
    assert LRSACLI(["--config", yaml.safe_dump(saved)], run=False).trainer.num_devices == 1
