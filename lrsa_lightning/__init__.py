"""Fine-tune Qwen2.5 on long contexts with a swappable attention: Vanilla or LRSA."""

from typing import TYPE_CHECKING

from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
from lrsa_lightning.generation import generate

if TYPE_CHECKING:
    from lrsa_lightning.attention.cache import LagKVCache

__all__ = ["LRSA", "AttentionMode", "LagKVCache", "Vanilla", "generate"]


def __getattr__(name: str):
    # LagKVCache subclasses a transformers class, whose import takes seconds that `lrsa --help` should not.
    if name == "LagKVCache":
        from lrsa_lightning.attention.cache import LagKVCache

        return LagKVCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
