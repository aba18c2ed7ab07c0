"""An adapter folder as what an export starts from: its base, with the adapter merged into it."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.pretrained.decoder import load_config, load_model
from lrsa_lightning.saved_settings import TEMPLATE
from lrsa_lightning.trained_model import RunCheckpoint, find_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterSource:
    """Has what an export takes from a `RunCheckpoint`.

    Attributes:
        path: the folder.
        folder: the same, absolute; its name is that of the model.
        run: what is known of the training.
    """

    def __init__(self, path: Path):
        self.path, self.folder = path, path.absolute()
        self.run: dict[str, Any] = {"model": {"name_or_path": str(path)}, "data": {}}

    @property
    def tokenizer_name(self) -> str:
        """The folder; its tokenizer may be that of the base."""
        return str(self.path)

    @cached_property
    def model_config(self):
        """The transformers configuration of the base, with what training changed in it."""
        return load_config(str(self.path), None)

    @property
    def template(self) -> str:
        """The template that the folder names, for what the model is asked."""
        return getattr(self.model_config, TEMPLATE, "base")

    @property
    def attention(self) -> AttentionMode | None:
        """The mode that the folder names; None if it names none."""
        return saved_mode(self.model_config)

    def load(self, dtype: torch.dtype | None = None) -> "PreTrainedModel":
        """The merged model, in evaluation mode.

        Args:
            dtype: of the weights; that of the base if None.

        Raises:
            InputError: base or adapter cannot be read, or do not fit together.
        """
        return load_model(self.model_config, str(self.path), dtype or self.model_config.dtype).eval()

    def load_adapter(self, dtype: torch.dtype | None = None) -> Any:
        """Raises InputError: there is nothing to do."""
        raise InputError(f"{self.path} is an adapter already: leave --adapter out to merge it, or copy the folder")


def export_source(source: Path) -> RunCheckpoint | AdapterSource:
    """What an export starts from: a run's last checkpoint, the given checkpoint, or an adapter folder.

    Raises:
        InputError: it is none of them, or the configuration of the run is missing.
    """
    if source.is_dir() and AdapterFolder.of(str(source)) is not None:
        return AdapterSource(source)
    return RunCheckpoint(find_checkpoint(source))
