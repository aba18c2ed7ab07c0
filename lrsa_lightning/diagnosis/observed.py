"""A mode whose layers show their queries, keys and values while it attends as usual."""

from collections.abc import Callable

from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode, set_attention, text_decoder
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.attention.layer_call import in_computed_dtype

# Takes a layer's index, queries [1, H, N, D] and keys [1, G, N, D] after RoPE, values, and the scale of the logits.
Observer = Callable[[int, Tensor, Tensor, Tensor, float], None]


class Observed(AttentionMode):
    """Another mode, observed in transformers' `AttentionInterface`: the result of a forward is that of the mode.

    A layer's tensors live no longer than in any forward. Layers that a hybrid model keeps are not shown.
    """

    def __init__(self, mode: AttentionMode, observe: Observer):
        self.mode = mode
        self.needs_padding_mask = mode.needs_padding_mask
        self._observe = observe
        self._not_shown: frozenset[int] = frozenset()

    def registry_key(self) -> str:
        """One name for each mode: transformers' registry holds on to what has a name."""
        return f"OBSERVED-{self.mode.registry_key().upper()}"

    def make_cache(self, config, lengths=None):
        return self.mode.make_cache(config, lengths)

    def settings(self):
        return self.mode.settings()

    def check(self, config) -> None:
        self.mode.check(config)

    def install(self, model) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        self.mode.install(model)
        self._not_shown = kept_layers(text_decoder(model).config)
        AttentionInterface.register(self.registry_key(), self._attend)
        mask = ALL_MASK_ATTENTION_FUNCTIONS[self.mode.registry_key()]
        AttentionMaskInterface.register(self.registry_key(), mask)
        set_attention(model, self.registry_key())

    def _attend(self, module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None, **arguments):
        """What transformers calls in each attention layer."""
        if module.layer_idx not in self._not_shown:
            states = [in_computed_dtype(z) for z in (query, key, value)]
            self._observe(module.layer_idx, *states, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return self.mode.attention_function()(module, query, key, value, attention_mask, scaling=scaling, **arguments)
