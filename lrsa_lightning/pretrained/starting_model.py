"""The model that a run starts from: pretrained or random weights, with or without adapters."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.adapters import LoraSettings, adapted
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.pretrained.decoder import load_config, load_model
from lrsa_lightning.pretrained.gguf_file import dequantised, find_file
from lrsa_lightning.pretrained.quantisation import Quantisation
from lrsa_lightning.pretrained.weights import check_folder, check_quantisation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StartingModel:
    """Its parts are those keys of `model` that decide the weights before the first step.

    Attributes:
        name_or_path: hub id or folder of a pretrained model, or of an adapter with the name of its base.
        from_config: keys of a configuration for random weights.
        rope_parameters: override those of the model.
        lora: new adapters; None trains all weights, or the adapters of name_or_path.
        quantization: of the weights beside adapters in training: a word or a mapping for `Quantisation`.
        gguf_file: of name_or_path, which holds the weights; None for a Hugging Face folder.
    """

    name_or_path: str | None = None
    from_config: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    lora: LoraSettings | None = None
    quantization: str | dict[str, Any] | None = None
    gguf_file: str | None = None

    def __post_init__(self):
        """Raises InputError unless name_or_path or from_config is given, lora has a base and quantization has lora."""
        if (self.name_or_path is None) == (self.from_config is None):
            raise InputError("give exactly one of model.name_or_path (pretrained) and model.from_config (random)")
        if self.gguf_file is not None:
            if self.name_or_path is None:
                raise InputError("model.gguf_file is a file of model.name_or_path: give the folder that contains it")
            find_file(self.name_or_path, self.gguf_file)
        if self.lora is not None and self.from_config is not None:
            raise InputError(
                "model.lora trains adapters beside pretrained weights, but model.from_config makes random ones, which "
                "no checkpoint would hold: give model.name_or_path, or leave model.lora out"
            )
        if self.quantisation is not None and not self.has_adapters:
            raise InputError(
                "model.quantization is for the weights beside adapters, because quantised weights cannot be trained: "
                "give model.lora, or leave model.quantization out"
            )

    @classmethod
    def of_run(cls, model: Mapping[str, Any]) -> "StartingModel":
        """That of a run, from the section `model` of its configuration."""
        given = {field.name: model.get(field.name) for field in fields(cls)}
        return cls(**given | {"lora": given["lora"] and LoraSettings(**given["lora"])})

    @cached_property
    def pretrained(self) -> str | None:
        """Hub id or folder of the pretrained model or adapter, made of the GGUF file if one is given."""
        if self.name_or_path is None or self.gguf_file is None:
            return self.name_or_path
        return dequantised(self.name_or_path, self.gguf_file)

    @cached_property
    def folder(self) -> AdapterFolder | None:
        """The adapter that name_or_path names, if it names one."""
        if self.name_or_path is None or self.gguf_file is not None:
            return None
        return AdapterFolder.of(self.name_or_path)

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained, and the other weights are not."""
        return self.lora is not None or self.folder is not None

    @property
    def quantisation(self) -> Quantisation | None:
        """What quantization means."""
        return Quantisation.of(self.quantization)

    @property
    def dropout(self) -> float:
        """Of the adapters' inputs in training."""
        if self.folder is not None:
            return self.folder.config.lora_dropout
        return 0.0 if self.lora is None else self.lora.dropout

    @property
    def given_rope(self) -> dict[str, Any] | None:
        """What overrides the RoPE of the pretrained model: rope_parameters, or what an adapter folder says."""
        return self.rope_parameters or (self.folder and self.folder.changes.get("rope_parameters"))

    def load_config(self):
        """The model's transformers configuration; loads no weights.

        Raises:
            InputError: the model cannot be found, or a key is wrong.
        """
        return load_config(self.pretrained, self.from_config, self.rope_parameters)

    def check(self, config) -> None:
        """Checks the files of weights, and whether the adapters fit the model, without reading a weight.

        Args:
            config: of `load_config`.

        Raises:
            InputError: weights are missing, corrupt or quantised, or adapters cannot be put into this model.
        """
        self.check_files()
        check_quantisation(config, self._base)
        if self.has_adapters:
            with torch.device("meta"):
                self._adapted(load_model(copy.deepcopy(config), None))

    def check_files(self) -> None:
        """Raises InputError if a local folder lacks weights, or if they are corrupt or quantised."""
        if self.folder is not None:
            self.folder.check()
        if self.name_or_path is not None:
            check_folder(self._base)

    def load(self, config, frozen_dtype: torch.dtype | None = None) -> "PreTrainedModel":
        """The model on the current default device, for training; adapters are drawn, or read, on the CPU.

        Args:
            config: of `load_config`.
            frozen_dtype: of weights beside adapters; torch's default dtype if None, as for all that is trained.
        """
        if not self.has_adapters:
            return load_model(config, self.pretrained)
        device = torch.get_default_device()
        if self.quantisation is not None:  # the device quantises
            return self.load_adapted(config, frozen_dtype, self.quantisation).get_base_model()
        with torch.device(device if device.type == "meta" else "cpu"):
            return self.load_adapted(config, frozen_dtype).get_base_model().to(device)

    def load_adapted(
        self, config, dtype: torch.dtype | None = None, quantisation: Quantisation | None = None
    ) -> "PeftModel":
        """The model with its adapters, in peft's view.

        Args:
            config: of `load_config`.
            dtype: of the weights beside the adapters; torch's default dtype if None.
            quantisation: of these weights, which are then on the default device; None for evaluation and export.

        Raises:
            InputError: weights cannot be read, or do not fit.
        """
        model, device = load_model(config, self._base, dtype, quantisation), torch.get_default_device()
        with torch.device(device if device.type == "meta" else "cpu"):
            peft_model = self._adapted(model)
        peft_model.peft_config["default"].base_model_name_or_path = self._base
        return peft_model.train()

    @property
    def _base(self) -> str | None:
        return self.pretrained if self.folder is None else self.folder.base

    def _adapted(self, model: "PreTrainedModel") -> "PeftModel":
        if self.folder is None:
            return adapted(model, self.lora.peft_config())
        if self.lora is not None:
            raise InputError(
                f"model.name_or_path {self.name_or_path} is an adapter and brings its own settings: leave model.lora "
                "out, or export the adapter merged (lrsa export) and give that folder"
            )
        return self.folder.put_into(model)
