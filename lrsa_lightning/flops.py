"""Floating-point operations of a training step, from the shapes of the model and who sees whom.

Counted are the matrix products, 2 operations a multiply-add: projections, feed-forward, attention by its visible
query-key pairs, and the head on the label tokens it meets. Recomputed activations are not: these are the model's
operations, not the device's. Nor are norms, RoPE and the ranking of tokens, which are no matrix products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.layer_pairs import layer_pairs
from lrsa_lightning.decoder_sizes import feed_forward_weights, head_dim, kv_heads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A product's backward is two of the same size: one for each factor. A frozen weight needs none.
_FORWARD_AND_BACKWARD = 3
_OF_FROZEN_WEIGHT = 2


@dataclass(frozen=True)
class StepFlops:
    """What a step takes, forward and backward.

    Attributes:
        real: with the attention the mode computes.
        dense: with the model's own attention: every token sees all before it, in a window where a layer has one.
    """

    real: int
    dense: int


@dataclass(frozen=True)
class DecoderFlops:
    """Forward operations of a decoder's parts.

    Attributes:
        config: of the text decoder.
        token: of a token in all layers, without attention.
        pair: of a visible query-key pair in one layer, all heads: its logit and its share of the output.
        label_token: of a token in the head.
    """

    config: "PreTrainedConfig"
    token: int
    pair: int
    label_token: int

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "DecoderFlops":
        """Those of a dense decoder: Qwen2, Llama, Mistral and their like (a gated feed-forward), GPT-2 or OPT."""
        heads, hidden = config.num_attention_heads, config.hidden_size
        attention = 2 * hidden * head_dim(config) * (heads + kv_heads(config))
        weights = config.num_hidden_layers * (attention + feed_forward_weights(config))
        return cls(config, 2 * weights, 4 * heads * head_dim(config), 2 * hidden * config.vocab_size)

    def training(
        self, lengths: Mapping[int, int], num_labels: int, mode: AttentionMode, trains_weights: bool = True
    ) -> StepFlops:
        """Forward and backward of sequences that attend within themselves.

        Args:
            lengths: how many sequences there are of each length in tokens, padding included where it is computed.
            num_labels: label tokens of all of them.
            mode: the attention; its visible pairs count in each layer that does not keep its own.
            trains_weights: False where adapters are trained beside them. The adapters' own operations, r / hidden size
                of a weight's, are not counted.
        """
        rest = self.token * sum(length * count for length, count in lengths.items()) + self.label_token * num_labels
        real, dense = (
            sum(count * sum(layer_pairs(self.config, seen, length)) for length, count in lengths.items())
            for seen in (mode, None)
        )
        of_weights = (_FORWARD_AND_BACKWARD if trains_weights else _OF_FROZEN_WEIGHT) * rest
        return StepFlops(*(of_weights + _FORWARD_AND_BACKWARD * self.pair * pairs for pairs in (real, dense)))
