"""Quantised weights beside adapters (QLoRA, arXiv 2305.14314), through transformers' `quantization_config`."""

from dataclasses import dataclass, field
from typing import Any

from lrsa_lightning.errors import InputError, suggestion

# What a word means for transformers' BitsAndBytesConfig. Double quantisation is QLoRA's own.
_WORDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
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
