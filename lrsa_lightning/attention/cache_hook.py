"""The cache's way to the attention function, and the rows' way to the cache.

transformers gives an attention layer its cache, but not its function; and it gives the cache no attention mask. A
forward pre-hook of the text decoder adds both. It also makes the cache where transformers begins one.
"""

from inspect import signature
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrsa_lightning.attention.base import AttentionMode, text_decoder
from lrsa_lightning.attention.hybrid import for_kept_layers
from lrsa_lightning.attention.installed import NAME, installed_mode, is_registered
from lrsa_lightning.attention.rows import OWN_CACHE
from lrsa_lightning.errors import InputError
from lrsa_lightning.saved_settings import saved_settings

_HANDLES: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()
_NOT_IN_A_GRAPH = "LRSA makes its cache outside of graphs; with fullgraph=True give the forward mode.make_cache(config)"
# What collators of transformers and TRL give for packed rows besides positions.
_BOUNDS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}


def hand_cache_on(decoder: nn.Module) -> None:
    """Lets a text decoder hand a `LagKVCache` on to its attention functions, as their argument ``kv_cache``.

    transformers passes keywords that it does not know from the forward of a decoder down to the attention function. A
    second call replaces the hook, since Lightning's DeepSpeed strategy removes all hooks before it validates.

    Args:
        decoder: a text decoder, or a model around one, whose hook does nothing.
    """
    if decoder in _HANDLES:
        _HANDLES[decoder].remove()
    _HANDLES[decoder] = decoder.register_forward_pre_hook(_prepare_forward, with_kwargs=True)


def _prepare_forward(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Adds what the mode needs in a forward: cache, boundaries of packed rows, positions of rows padded on the left."""
    if text_decoder(decoder) is not decoder:
        return None
    if not is_registered(decoder.config) and saved_settings(decoder.config) is not None:
        decoder.config._attn_implementation = NAME  # another process has installed the mode under its own name
    mode = installed_mode(decoder.config)
    if not isinstance(mode, AttentionMode) or mode.needs_padding_mask:
        return None
    by_place = signature(decoder.forward).bind_partial(*args).arguments if args else {}
    given = {**by_place, **kwargs}
    _take_boundaries(given)
    _take_cache(decoder, mode, given)
    _take_positions(given)
    given |= for_kept_layers(decoder.config, given)
    return (), given


def _take_boundaries(given: dict[str, Any]) -> None:
    """Turns the bounds of packed rows for other kernels into ``cu_seqlens``."""
    bounds = given.get("cu_seq_lens_q")
    if bounds is None or given.get("past_key_values") is not None:
        return
    for name in _BOUNDS:
        given.pop(name, None)
    batch, num_tokens = _tokens(given).shape[:2]
    ends, rows = bounds.tolist(), pairwise(range(0, (batch + 1) * num_tokens, num_tokens))
    given["cu_seqlens"] = [[end - start for end in ends if start <= end <= stop] for start, stop in rows]


def _take_cache(decoder: nn.Module, mode: AttentionMode, given: dict[str, Any]) -> None:
    """Gives a forward the mode's cache, if it begins one, and the cache the mask, which says where its tokens are.

    Raises:
        InputError: the forward has a cache that the mode cannot use.
    """
    from lrsa_lightning.attention.cache import LagKVCache

    cache = given.get("past_key_values")
    if cache is None:
        cache = _begun_cache(decoder, mode, given)
    elif not isinstance(cache, LagKVCache):
        _become(cache, decoder, mode)
    if cache is not None:
        mask = given.get("attention_mask")
        if not torch.compiler.is_compiling():  # else the mask comes with the tokens
            cache.counts.announce(mask if isinstance(mask, Tensor) and mask.ndim == 2 else None)
        given |= {"past_key_values": cache, "kv_cache": cache}


def _begun_cache(decoder: nn.Module, mode: AttentionMode, given: dict[str, Any]):
    """The mode's cache where the forward asks for one; else None.

    Without a word about it, transformers makes a cache in training too, and then does not look for packed rows.
    """
    use_cache = given.get("use_cache")
    traced = torch.compiler.is_compiling()  # positions have no values then
    if use_cache is None and (decoder.training or traced or _restart(given.get("position_ids"))):
        given["use_cache"] = False
    return _new_cache(decoder, mode) if use_cache and not torch.is_grad_enabled() else None


@torch.compiler.disable(reason=_NOT_IN_A_GRAPH)
def _new_cache(decoder: nn.Module, mode: AttentionMode):
    """The mode's cache. To make it is to examine the model, which no graph can hold."""
    return mode.make_cache(decoder.config)


def _restart(positions: Any) -> bool:
    """Whether the rows are packed, by their positions. To look at them is to wait for the device."""
    if not isinstance(positions, Tensor) or positions.ndim != 2 or torch.compiler.is_compiling():
        return False
    return bool((positions.diff(dim=1) != 1).any())


@torch.compiler.disable(reason=_NOT_IN_A_GRAPH)
def _become(cache, decoder: nn.Module, mode: AttentionMode) -> None:
    """Makes an empty DynamicCache, as `generate` begins with, the mode's own cache.

    The object stays the same: whoever made it passes it on to the next forward.

    Raises:
        InputError: it is another cache, or not empty.
    """
    from transformers import DynamicCache

    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        offloaded = "an offloaded " if type(cache) is DynamicCache else "a "
        raise InputError(f"LRSA was given {offloaded}{type(cache).__name__}. {OWN_CACHE}")
    if (held := cache.get_seq_length()) > 0:
        raise InputError(
            f"LRSA was given a DynamicCache that holds {held} tokens already, none of them compressed. {OWN_CACHE}"
        )
    own = _new_cache(decoder, mode)
    cache.__class__ = type(own)
    cache.__setstate__(vars(own))


def _take_positions(given: dict[str, Any]) -> None:
    """Gives rows that are padded on the left each token's position in its row: a row begins where its mask does."""
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or given.get("position_ids") is not None:
        return
    # A compiler has no values to look at. The positions are right for every row.
    if torch.compiler.is_compiling() or bool((mask[:, 0] == 0).any()):
        first_B1 = (mask != 0).int().argmax(dim=1, keepdim=True)
        positions = (torch.arange(mask.shape[1], device=mask.device) - first_B1).clamp(min=0)
        given["position_ids"] = positions[:, -_tokens(given).shape[1] :]


def _tokens(given: dict[str, Any]) -> Tensor:
    return given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
