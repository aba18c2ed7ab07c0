"""The model of an evaluation: a Hugging Face model, or a checkpoint of a run."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.pretrained.decoder import load_config, load_model
from lrsa_lightning.saved_settings import TEMPLATE
from lrsa_lightning.trained_model import load_checkpoint

# The model's origin; no result depends on it.
_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class EvaluatedModel:
    """The Hugging Face model of that name, or that of a run's checkpoint. It reads each part at its first use."""

    def __init__(self, name: str | None, checkpoint: str | None, tokenizer: str | None, dtype: torch.dtype):
        self._name, self._checkpoint, self._tokenizer_name = name, checkpoint, tokenizer
        self.dtype = dtype

    @cached_property
    def _run(self):
        return None if self._checkpoint is None else load_checkpoint(Path(self._checkpoint), self.dtype)

    @property
    def name(self) -> str:
        """Path or hub id."""
        return str(Path(self._checkpoint or self._name))

    @cached_property
    def config(self):
        """The model's configuration."""
        return load_config(self._name, None) if self._run is None else self._run.model.config

    @cached_property
    def model(self):
        """The transformers model, in evaluation mode and on the CPU at first."""
        if self._run is not None:
            return self._run.model
        return load_model(self.config, self._name, self.dtype).eval()

    @cached_property
    def tokenizer(self):
        """The transformers tokenizer."""
        own = self._name if self._run is None else self._run.tokenizer_name
        return load_tokenizer(self._tokenizer_name or own, "--tokenizer")

    @property
    def template(self) -> str:
        """The template of training, by the run or config.json; base for another model."""
        return getattr(self.config, TEMPLATE, "base") if self._run is None else self._run.template

    @property
    def seq_len(self) -> int | None:
        """The training length of the run; None for a Hugging Face model."""
        return None if self._run is None else self._run.config["data"]["seq_len"]


def fingerprint(model) -> str:
    """A hash of a model's weights on the CPU, of its configuration and of the tokens that end its answers."""
    weights = model.state_dict()
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        hashes = dict(zip(weights, pool.map(_sha256, weights.values()), strict=True))
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _ORIGIN}
    ends = None if model.generation_config is None else model.generation_config.eos_token_id
    known = json.dumps([hashes, config, ends], sort_keys=True, default=str)
    return hashlib.sha256(known.encode("utf-8")).hexdigest()


def _sha256(weight: Tensor) -> str:
    flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()
