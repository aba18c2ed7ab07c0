"""Refuses, before training, states that a checkpoint cannot hold."""

from collections.abc import Iterator
from contextlib import suppress

from lightning import Trainer

from lrsa_lightning.checkpoints.plain_state import check_plain


def check_states(trainer: Trainer) -> None:
    """
    Raises:
        InputError: the state of a callback or the datamodule could not be loaded again from a checkpoint.
    """
    for name, part in _states(trainer):
        check_plain(part, name)


def _states(trainer: Trainer) -> Iterator[tuple[str, dict]]:
    """Names and states of callbacks, module and datamodule in a checkpoint, as far as they exist before training."""
    modules = [module for module in (trainer.lightning_module, trainer.datamodule) if module is not None]
    for module in modules:
        yield "hyper_parameters", dict(module.hparams)
    owners = {f"callbacks[{callback.state_key!r}]": callback for callback in trainer.callbacks}
    owners |= {type(module).__qualname__: module for module in modules[1:]}
    for name, owner in owners.items():
        state = {}
        with suppress(Exception):  # some states exist only during training: they are checked when they are written
            state = owner.state_dict()
        yield name, state
