"""The cache's way to the attention function, and the rows' way to the cache.

transformers gives an attention layer its cache, but not its function; and it gives the cache no attention mask.
"""

from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrsa_lightning.attention.hybrid import for_kept_layers

_HANDLES: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()


def hand_cache_on(decoder: nn.Module) -> None:
    """Lets a text decoder hand a `LagKVCache` on to its attention functions, as their argument ``kv_cache``.

    transformers passes keywords that it does not know from the forward of a decoder down to the attention function. A
    second call replaces the hook, since Lightning's DeepSpeed strategy removes all hooks before it validates.
    """
    if decoder in _HANDLES:
        _HANDLES[decoder].remove()
    _HANDLES[decoder] = decoder.register_forward_pre_hook(_prepare_rows, with_kwargs=True)


def _prepare_rows(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Adds the cache and, for rows padded on the left, the positions; says to the cache which columns are tokens."""
    from lrsa_lightning.attention.cache import LagKVCache

    given = signature(decoder.forward).bind_partial(*args, **kwargs).arguments if args else kwargs
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    added: dict[str, Any] = {}
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if isinstance(cache, LagKVCache):
        cache.counts.announce(mask)
        added["kv_cache"] = cache
    # A compiler has no values to look at. The positions are right for every row.
    if (
        mask is not None
        and given.get("position_ids") is None
        and (torch.compiler.is_compiling() or bool((mask[:, 0] == 0).any()))
    ):
        added["position_ids"] = _positions(mask, given)
    added |= for_kept_layers(decoder.config, given)
    return (args, {**kwargs, **added}) if added else None


def _positions(mask_BN: Tensor, given: dict) -> Tensor:
    """Each token's position in its row, int64 [B, n]: a row begins where its mask does."""
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    first_B1 = (mask_BN != 0).int().argmax(dim=1, keepdim=True)
    columns = torch.arange(mask_BN.shape[1], device=mask_BN.device)
    return (columns - first_B1).clamp(min=0)[:, -tokens.shape[1] :]
