"""What a layer of a model asks of the attention function, and whether full causal attention can do it.

transformers passes an attention function everything that a layer computes with: a window, a cap on the logits, sinks, a
bias. LRSA refuses what it does not know. To ignore it would compute something else.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.errors import InputError

# Bookkeeping that does not change what a layer attends to.
_NO_MATTER = {
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}
_NAMES = {
    "softcap": "caps its logits (softcap)",
    "s_aux": "has attention sinks (s_aux)",
    "sinks": "has attention sinks",
    "position_bias": "adds a position bias to its logits",
    "cu_seq_lens_q": "gets the bounds of packed rows as cu_seq_lens_q: give cu_seqlens instead",
}


def check_layer_call(module, num_tokens: float, **arguments) -> None:
    """Refuses what full causal attention over ``num_tokens`` tokens does not honour.

    Args:
        module: the attention layer.
        num_tokens: of the longest sequence.
        arguments: everything else that came with the call, as for `beyond_full_attention`.

    Raises:
        InputError: names what it is.
    """
    if (problem := beyond_full_attention(module, num_tokens, **arguments)) is not None:
        raise InputError(f"LRSA replaces full causal attention, but {problem}. Otherwise use Vanilla with it")


def beyond_full_attention(
    module,
    num_tokens: float,
    *,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others,
) -> str | None:
    """What a call asks for that full causal attention over ``num_tokens`` tokens does not honour; None for nothing.

    Args:
        module: the attention layer.
        num_tokens: of the longest sequence.
        sliding_window: tokens that a query sees, its own included; no matter where the sequence is no longer.
        dropout: of attention weights.
        is_causal: False where queries see what follows; the layer's own attribute when None.
        others: everything else that came with the call.
    """
    problem = None
    if sliding_window is not None and sliding_window < num_tokens:
        problem = f"has a sliding window of {sliding_window} tokens, which a sequence of {num_tokens} reaches beyond"
    elif dropout:
        problem = f"drops attention weights at random: set {_dropout_keys(module, dropout)} to 0 in the model's config"
    elif not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        problem = "lets tokens see later ones (it is not causal)"
    elif (name := next(asked(others), None)) is not None:
        problem = _NAMES.get(name, f"passes {name!r}, which LRSA does not know")
    layer = f"layer {getattr(module, 'layer_idx', '?')} of this model ({type(module).__name__})"
    return None if problem is None else f"{layer} {problem}"


def asked(arguments: dict[str, Any]) -> Iterator[str]:
    """Names of the arguments of a call that an attention function has to honour."""
    # Not by truth: a tensor has none. False, None and 0 all mean that there is nothing to honour.
    return (n for n, z in arguments.items() if n not in _NO_MATTER and (isinstance(z, Tensor) or z))


def _dropout_keys(module, dropout: float) -> str:
    """What the model's configuration calls the dropout of attention weights."""
    config = getattr(module, "config", None)
    keys = {} if config is None else config.to_dict()
    return " or ".join(key for key, z in keys.items() if "drop" in key and "att" in key and z == dropout) or "it"


def in_computed_dtype(z: Tensor) -> Tensor:
    """The tensor in the dtype that the model computes in: under autocast RoPE leaves queries and keys in float32."""
    device = z.device.type
    return z.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else z
