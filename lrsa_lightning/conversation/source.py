"""What MODEL_OR_RUN means: a Hugging Face folder or hub id, a run directory, or a checkpoint of a run."""

import logging
from functools import cached_property
from pathlib import Path

import torch

from lrsa_lightning.attention import AttentionMode, Vanilla
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.pretrained.decoder import load_config, load_model
from lrsa_lightning.pretrained.starting_model import StartingModel
from lrsa_lightning.saved_settings import TEMPLATE
from lrsa_lightning.trained_model import RunCheckpoint, find_checkpoint, take_generation_config

log = logging.getLogger(__name__)


class ModelSource:
    """A model by the name that a user gave. It reads no weights before `load`."""

    def __init__(self, name: str):
        """
        Raises:
            InputError: a file or folder does not exist, is no model, or lacks its weights.
        """
        self._name, self._checkpoint = name, None
        path = Path(name).expanduser()
        is_folder = any((path / name).exists() for name in ("config.json", "adapter_config.json"))
        if path.is_dir() and not is_folder and not any((path / name).exists() for name in ("config.yaml", "latest")):
            raise InputError(f"{name} holds no model: give runs/NAME, a checkpoint of it, or a Hugging Face folder")
        if is_folder:
            self._name = str(path)
            StartingModel(self._name).check_files()
        elif path.exists():
            self._checkpoint = RunCheckpoint(find_checkpoint(path))
        elif not _may_be_hub_id(name, path):
            beside = suggestion(path.name, [other.name for other in path.parent.glob("*")])
            raise InputError(f"{name} does not exist{beside or ': give a run, a checkpoint, or a Hugging Face folder'}")

    @cached_property
    def config(self):
        """The model's transformers configuration."""
        return load_config(self._name, None) if self._checkpoint is None else self._checkpoint.model_config

    @cached_property
    def tokenizer(self):
        """The transformers tokenizer: the run's, or that of the folder."""
        if self._checkpoint is None:
            return load_tokenizer(self._name, "the tokenizer of")
        return load_tokenizer(self._checkpoint.tokenizer_name, "the run's data.tokenizer")

    @property
    def template(self) -> TemplateName:
        """The template of training; of another model the tokenizer's chat template if it has one, else base."""
        if self._checkpoint is not None:
            return self._checkpoint.template
        return getattr(self.config, TEMPLATE, "chatml" if self.tokenizer.chat_template else "base")

    @property
    def seq_len(self) -> int | None:
        """The run's training length; None for another model."""
        return None if self._checkpoint is None else self._checkpoint.run["data"].get("seq_len")

    @property
    def attention(self) -> AttentionMode:
        """The mode that the run trained with, or that config.json names; else full attention, and a line says so.

        Raises:
            InputError: the configuration names no mode that there is.
        """
        if self._checkpoint is not None:
            try:
                return self._checkpoint.attention
            except InputError as error:
                raise InputError(f"{error}: give --attention") from error
        if (mode := saved_mode(self.config)) is not None:
            return mode
        log.info("%s names no attention mode: full attention (--attention gives another)", self._name)
        return Vanilla()

    def load(self, dtype: torch.dtype, device: torch.device):
        """The model in evaluation mode, on the device.

        Raises:
            InputError: the weights are missing, corrupt or of another model.
        """
        log.info("%s: reading its weights", self)
        if self._checkpoint is None:
            return load_model(self.config, self._name, dtype).eval().to(device)
        model = self._checkpoint.load(dtype)
        take_generation_config(model, self._checkpoint.run["model"]["name_or_path"])
        return model.to(device)

    def __str__(self) -> str:
        return self._name if self._checkpoint is None else str(self._checkpoint.path)


def _may_be_hub_id(name: str, path: Path) -> bool:
    is_beside_others = len(path.parts) > 1 and path.parent.is_dir()
    return not (is_beside_others or name.startswith((".", "/", "~", "runs/")))
