"""LoRA (arXiv 2106.09685): a run's settings, adapters in a decoder, and the folders that hold them."""

from lrsa_lightning.lora.adapters import LoraSettings
from lrsa_lightning.lora.folder import AdapterFolder

__all__ = ["AdapterFolder", "LoraSettings"]
