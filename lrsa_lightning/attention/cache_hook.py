"""The cache's way to the attention function: transformers gives an attention layer its cache, but not its function."""

from inspect import signature
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

_HANDLES: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()


def hand_cache_on(decoder: nn.Module) -> None:
    """Lets a text decoder hand a `LagKVCache` on to its attention functions, as their argument ``kv_cache``.

    transformers passes keywords that it does not know from the forward of a decoder down to the attention function. A
    second call replaces the hook, since Lightning's DeepSpeed strategy removes all hooks before it validates.
    """
    if decoder in _HANDLES:
        _HANDLES[decoder].remove()
    _HANDLES[decoder] = decoder.register_forward_pre_hook(_add_cache, with_kwargs=True)


def _add_cache(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    from lrsa_lightning.attention.cache import LagKVCache

    cache = kwargs.get("past_key_values")
    if cache is None and len(args) > 1:  # given by position
        cache = signature(decoder.forward).bind_partial(*args, **kwargs).arguments.get("past_key_values")
    return (args, {**kwargs, "kv_cache": cache}) if isinstance(cache, LagKVCache) else None
