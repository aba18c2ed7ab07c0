"""Sizes of a decoder layer, which configurations name in different ways or leave to their model's code."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def kv_heads(config: "PreTrainedConfig") -> int:
    """KV heads of a layer. A configuration that names none (GPT-2, OPT) has one for each head."""
    number = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # GPT-BigCode and the first Falcon models
    return number or config.num_attention_heads


def head_dim(config: "PreTrainedConfig") -> int:
    """Channels of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def feed_forward_size(config: "PreTrainedConfig") -> int:
    """The width between the matrices of a layer's feed-forward: 4 hidden sizes where the configuration names none."""
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    return next((size for name in names if (size := getattr(config, name, None))), 4 * config.hidden_size)


def feed_forward_weights(config: "PreTrainedConfig") -> int:
    """Numbers in a layer's feed-forward: three matrices with a gate, two in configurations of the older decoders."""
    matrices = 3 if getattr(config, "intermediate_size", None) else 2
    return matrices * config.hidden_size * feed_forward_size(config)
