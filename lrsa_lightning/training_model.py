"""Makes the model of a run: loads it, installs the attention mode and takes fused layers."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import Strategy

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.fused import FusedLayers, fuse
from lrsa_lightning.precision import MasterPrecision
from lrsa_lightning.pretrained.starting_model import StartingModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def training_model(
    start: StartingModel, attention: AttentionMode, fused_layers: FusedLayers, strategy: Strategy | None
) -> "PreTrainedModel":
    """The model on the current default device, with the mode installed.

    Under bf16-master, weights beside adapters are in bfloat16: what is frozen needs no masters.

    Args:
        start: its weights.
        attention: for the length of the run.
        fused_layers: as in `fuse`.
        strategy: of the run; None without a trainer.

    Raises:
        InputError: weights cannot be read, or parts do not fit together.
    """
    has_masters = isinstance(getattr(strategy, "precision_plugin", None), MasterPrecision)
    model = start.load(start.load_config(), torch.bfloat16 if has_masters else None)
    attention.install(model)
    fuse(model, fused_layers, "cpu" if strategy is None else strategy.root_device.type)
    return model
