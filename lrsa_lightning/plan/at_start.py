"""The plan of a fit, in a line of what `lrsa fit` begins with on an accelerator."""

import logging
from typing import Any

import torch
from lightning import LightningModule, Trainer

from lrsa_lightning.errors import InputError
from lrsa_lightning.plan.devices import Device, find_device
from lrsa_lightning.plan.prediction import predict
from lrsa_lightning.plan.report import verdict
from lrsa_lightning.plan.run import Run

log = logging.getLogger(__name__)


def announce(given: Any, module: LightningModule, trainer: Trainer) -> str | None:
    """Warns if a fit will not fit. Returns the plan in one line, None on CPUs; a plan that fails never ends a run.

    Args:
        given: the parsed configuration of the run.
        module: without weights yet.
        trainer: of the run.
    """
    torch_device = trainer.strategy.root_device
    if torch_device.type == "cpu" or not trainer.is_global_zero:
        return None
    try:
        device = device_at_hand(torch_device)
        run = Run.of(given, module, trainer.world_size)
        prediction = predict(run, device)
    except InputError as error:
        return str(error)
    except Exception as error:  # of a library, on a model or a device that the plan did not expect
        return f"none, because of {type(error).__name__}: {error}"
    if not prediction.fits:
        log.warning("the plan is that this run does not fit: `lrsa plan` with the same options says what does")
    return verdict(run, prediction)


def device_at_hand(torch_device: torch.device) -> Device:
    """What the plan knows of an accelerator of this machine."""
    module = torch.get_device_module(torch_device)
    return find_device(module.get_device_name(torch_device), module.get_device_properties(torch_device).total_memory)
