"""What each layer of a decoder sees: some keep their own attention (`attention.hybrid`), which no mode changes."""

from typing import TYPE_CHECKING

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.hybrid import FULL, kept_layers, kinds_of_layers
from lrsa_lightning.attention.layout import causal_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def layer_pairs(config: "PreTrainedConfig", mode: AttentionMode | None, num_tokens: int) -> list[int]:
    """Query-key pairs that each decoder layer attends over in a sequence, all heads alike.

    Args:
        config: of the text decoder.
        mode: the attention; None for that of the model itself, which sees all that its layers may see.
        num_tokens: of the sequence.
    """
    kept, own = kept_layers(config), _own_pairs(config, num_tokens)
    if mode is None:
        return own
    return [
        pairs if layer in kept else min(pairs, mode.visible_pairs(num_tokens, layer)) for layer, pairs in enumerate(own)
    ]


def stored_tokens(config: "PreTrainedConfig", mode: AttentionMode, num_tokens: int) -> list[int]:
    """Tokens that each layer's KV cache holds after a prompt; 0 where a layer keeps one state for the row."""
    kept, kinds = kept_layers(config), kinds_of_layers(config)
    rules = [mode.context_rule(num_tokens, 1, layer) for layer in range(config.num_hidden_layers)]
    of_mode = [num_tokens if rule is None else rule.stored_len(num_tokens) for rule in rules]
    own = [_own_span(config, kind, num_tokens) for kind in kinds]
    return [own[layer] if layer in kept else min(own[layer], stored) for layer, stored in enumerate(of_mode)]


def _own_pairs(config: "PreTrainedConfig", num_tokens: int) -> list[int]:
    of_kind = {kind: _pairs_of(config, kind, num_tokens) for kind in {*kinds_of_layers(config)}}
    return [of_kind[kind] for kind in kinds_of_layers(config)]


def _pairs_of(config: "PreTrainedConfig", kind: str, num_tokens: int) -> int:
    span = _own_span(config, kind, num_tokens)
    if kind == "chunked_attention":
        complete, rest = divmod(num_tokens, max(span, 1))
        return complete * causal_pairs(span) + causal_pairs(rest)
    return causal_pairs(span) + (num_tokens - span) * span


def _own_span(config: "PreTrainedConfig", kind: str, num_tokens: int) -> int:
    """The most keys that a query of such a layer sees."""
    if kind in FULL:
        return num_tokens
    size = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}.get(kind)
    return 0 if size is None else min(num_tokens, getattr(config, size, None) or num_tokens)
