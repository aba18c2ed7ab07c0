"""What a misspelt key means."""

import pytest

from lrsa_lightning.command_line.near_keys import arguments_of, nearest_class, nearest_key

KNOWN = ["config", "model.attention.lag_size", "model.lr", "model.warmup_steps"]
KNOWN += ["data.seq_len", "data.train_files", "trainer.max_steps"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.atention", "model.attention"),
        ("model.atention.lagsize", "model.attention.lag_size"),
        ("modell.lr", "model.lr"),
        ("trainer.max_step", "trainer.max_steps"),
        ("lr", "model.lr"),
        ("max_step", "trainer.max_steps"),
        ("model.seq_len", "data.seq_len"),
        ("model.max_steps", "trainer.max_steps"),  # not the warm-up, which resembles it
        ("atention", "model.attention"),
        ("model.zzz", None),
        ("zzz", None),
        ("config.x", "config.x"),  # what a value holds is not known
    ],
)
def test_the_nearest_key(key, meant):
    assert nearest_key(key, KNOWN) == meant


@pytest.mark.parametrize(
    ("name", "module", "meant"),
    [
        ("LossCurv", "", "LossCurve"),
        ("EarlyStoping", "", "EarlyStopping"),
        ("RulerEvl", "lrsa_lightning.callbacks", "RulerEval"),
        ("Zzz", "", None),
    ],
)
def test_the_nearest_class(name, module, meant):
    assert nearest_class(name, module) == meant


def test_a_class_takes_its_parents_arguments_too():
    names = arguments_of("lrsa_lightning.callbacks.WandbLogger")
    assert {"project", "init_args"} <= {*names}  # Lightning's logger takes the project
