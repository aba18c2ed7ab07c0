"""Fine-tune Qwen2.5 on long contexts with a swappable attention: Vanilla or LRSA."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lrsa_lightning.import_hook import after_import

if TYPE_CHECKING:
    from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
    from lrsa_lightning.attention.cache import LagKVCache
    from lrsa_lightning.generation import generate

__all__ = ["LRSA", "AttentionMode", "LagKVCache", "Vanilla", "generate"]

# torch and transformers take seconds to import. `lrsa --help` needs neither.
_MODULES = {"LagKVCache": "attention.cache", "generate": "generation"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'attention')}"), name)


def _registration() -> ModuleType:
    return import_module(f"{__name__}.attention.registration")


after_import("transformers.modeling_utils", lambda: _registration().register())
after_import(
    "transformers.generation.continuous_batching.continuous_api", lambda: _registration().refuse_continuous_batching()
)
