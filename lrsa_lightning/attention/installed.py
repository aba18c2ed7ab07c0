"""Which attention runs in a model: what its configuration says, looked up in transformers' registry."""

from typing import Any

NAME = "lrsa"


def installed_mode(config) -> Any:
    """What owns the attention function of a model: an `AttentionMode` or what divides it among ranks; else None.

    Args:
        config: of the text decoder.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation)
    if config._attn_implementation == NAME:
        return function.mode_of(config)
    return getattr(function, "__self__", None)  # of a bound method


def is_registered(config) -> bool:
    """Whether this process knows the attention of a model by its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return config._attn_implementation in ALL_ATTENTION_FUNCTIONS or config._attn_implementation == "eager"
