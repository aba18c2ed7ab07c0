"""Quantised weights beside adapters (QLoRA, arXiv 2305.14314), through transformers' `quantization_config`."""

import inspect
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy

from lrsa_lightning.errors import InputError, suggestion

# What a word means for transformers' BitsAndBytesConfig. Double quantisation is QLoRA's own.
_WORDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
_PACKAGES = ("bitsandbytes", "accelerate")
_DEVICES = ("cuda",)  # bitsandbytes also has kernels for CPUs, which are slow and which tests alone take
_BLOCK = 64  # numbers of a 4-bit block; a double-quantised scale belongs to 256 blocks


@dataclass(frozen=True)
class Quantisation:
    """The keys of BitsAndBytesConfig.

    Attributes:
        keys: as given, or as a word means.
    """

    keys: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | dict[str, Any] | None) -> "Quantisation | None":
        """
        Args:
            given: nf4, fp4, int8, a mapping, or None.

        Raises:
            InputError: the word is unknown, or the keys quantise nothing.
        """
        if given is None:
            return None
        if isinstance(given, str):
            if given not in _WORDS:
                raise InputError(
                    f"model.quantization is {given!r}, but must be one of {', '.join(_WORDS)}, or a mapping of "
                    f"BitsAndBytesConfig's keys{suggestion(given, _WORDS)}"
                )
            return cls(_WORDS[given])
        if bool(given.get("load_in_4bit")) == bool(given.get("load_in_8bit")):
            raise InputError("model.quantization must have either load_in_4bit or load_in_8bit, and it must be true")
        return cls(dict(given))

    @property
    def bytes_a_number(self) -> float:
        """Of a quantised weight with its scales."""
        if self.keys.get("load_in_8bit"):
            return 1.0
        return 0.5 + (1 / _BLOCK + 4 / (256 * _BLOCK) if self.keys.get("bnb_4bit_use_double_quant") else 4 / _BLOCK)

    def check(self, strategy: Strategy, precision: str) -> None:
        """
        Args:
            strategy: of the run.
            precision: of the trainer.

        Raises:
            InputError: a package is missing, a key is unknown, or device, strategy or precision do not fit.
        """
        import transformers

        if missing := [name for name in _PACKAGES if find_spec(name) is None]:
            raise InputError(
                f"model.quantization needs {' and '.join(missing)}: pip install 'lrsa-lightning[optimizers]'"
            )
        known = inspect.signature(transformers.BitsAndBytesConfig).parameters
        for key in self.keys:
            if key not in known:
                raise InputError(f"model.quantization: {key} is no key of BitsAndBytesConfig{suggestion(key, known)}")
        if (device := strategy.root_device.type) not in _DEVICES:
            raise InputError(f"model.quantization runs on CUDA alone, not on {device}: leave it out")
        if isinstance(strategy, DeepSpeedStrategy | ModelParallelStrategy):
            raise InputError(
                "model.quantization runs on one device or under sp_ddp: ZeRO and FSDP2 would cast or divide the "
                "codes of quantised weights"
            )
        if "mixed" in precision:
            raise InputError(
                f"model.quantization computes in the dtype of the adapters, which trainer.precision {precision} does "
                "not say: set bf16-master or bf16-true"
            )

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Those of transformers' `from_pretrained`.

        Args:
            dtype: of what is not quantised, and of products.
            device: where the weights are quantised.
        """
        from transformers import BitsAndBytesConfig

        own = {} if self.keys.get("load_in_8bit") else {"bnb_4bit_compute_dtype": dtype}
        return {"quantization_config": BitsAndBytesConfig(**own | self.keys), "device_map": {"": device}}
