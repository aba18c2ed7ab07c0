"""The LRSA rule as a transformers Cache: it holds S + r * N + at most 2L tokens a layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lrsa_lightning.attention.cache_layer import LagKVLayer
from lrsa_lightning.attention.cache_view import WAY_OUT
from lrsa_lightning.attention.compiled_cache import number_of
from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.hybrid import own_cache_layers
from lrsa_lightning.attention.installed import installed_mode
from lrsa_lightning.attention.rule import LagRule, rule_of
from lrsa_lightning.attention.token_counts import TokenCounts
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt, checked


class LagKVCache(Cache):
    """A key-value cache compressed as training compresses (LRSA), for transformers' `generate` and ours.

    `AttentionMode.make_cache` makes it. After N tokens a layer holds `LagRule.stored_len(N)` of them, a layer in
    `skip_layers` all. Rows may be unequal in length, padded on the right (``lengths``) or as the attention mask of a
    forward says.

    Attributes:
        counts: the tokens that the rows have seen.
        number: int64 [] on the host, by which graphs of `torch.compile` know the cache.
    """

    @checked
    def __init__(
        self,
        mode_or_rule: Any,
        config,
        lengths: Sequence[PositiveInt] | None = None,
        max_tokens: PositiveInt | None = None,
    ):
        """
        Args:
            mode_or_rule: the `LRSA` whose rule it follows in each layer, or a `LagRule` for all layers.
            config: the model's configuration.
            lengths: true prompt lengths of right-padded rows, for rows of unequal length.
            max_tokens: longest length that a row will reach. The storage is then made once; otherwise it grows.

        Raises:
            InputError: the mode cannot be exact for this model, or a number is below 1.
        """
        if not isinstance(mode_or_rule, LagRule):
            mode_or_rule.check(config)
        self._config = config.get_text_config(decoder=True)
        self._rules = [rule_of(mode_or_rule, layer) for layer in range(self._config.num_hidden_layers)]
        self._owner, self.counts = repr(mode_or_rule), TokenCounts(lengths)
        of_all = getattr(mode_or_rule, "execution", Execution()), self._owner, self.counts, max_tokens
        kept = own_cache_layers(self._config)
        if kept and lengths is not None and len({*lengths}) > 1:
            raise InputError(
                "a hybrid model's own caches count columns: give rows of unequal length an attention_mask, padded on "
                "the left, or run them apart"
            )
        layers = [kept.get(layer) or LagKVLayer(rule, layer, *of_all) for layer, rule in enumerate(self._rules)]
        self._lag_layers = {layer: z for layer, z in enumerate(layers) if layer not in kept}
        super().__init__(layers=layers)
        self.number = number_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what another cache holds: a copy of one is a cache of its own."""
        vars(self).update(state)
        self.number = number_of(self)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """`LagKVLayer.update` of a layer.

        Raises:
            InputError: the model runs another mode than the cache's. Its configuration says so, or no attention under
                the rule has read the keys that a layer returned last.
        """
        if layer_idx not in self._lag_layers:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        traced = torch.compiler.is_compiling()
        if traced and callable(self._installed_rule()):  # `attend_cached` takes them in, and compares the rules
            return key_states, value_states
        places = [*self._lag_layers]
        place = places.index(layer_idx)
        is_other = traced or (place == 0 and not self._is_installed())
        # The layer before this one; for the first layer, the last one of the previous call.
        before = self.layers[places[place - 1]].view
        if is_other or (before is not None and not before.taken):
            raise InputError(
                f"this cache follows {self._owner}, which is not installed in the model: another attention reads "
                f"its keys. {WAY_OUT}"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _is_installed(self) -> bool:
        if self._config._attn_implementation is None:  # of a configuration without a model
            return True
        rule = self._installed_rule()
        return callable(rule) and [rule(layer) for layer in range(len(self._rules))] == self._rules

    def _installed_rule(self) -> Any:
        """Gives the installed mode's rule of a layer. Sharded attention has a rule as a value, and takes no cache."""
        return getattr(installed_mode(self._config), "rule", None)

    def has_room(self, num_tokens: int) -> bool:
        """Whether the longest row can grow by so many tokens without new storage in any layer."""
        return all(self.counts.longest + num_tokens <= layer.reach for layer in self._lag_layers.values())

    def runs_by_kernels(self) -> bool:
        """Whether a step of one token a row leaves every decision to the device, so that a CUDA graph can replay it."""
        has_kept = len(self._lag_layers) < len(self.layers)
        return not has_kept and all(layer.is_initialized and layer.runs_by_kernels() for layer in self.layers)

    def put_back(self, saved: "LagKVCache") -> None:
        """Takes what an earlier copy of this cache holds, in the storage that it has: it has not grown since."""
        self.counts.put_back(saved.counts)
        for layer, earlier in zip(self._lag_layers.values(), saved._lag_layers.values(), strict=True):
            layer.put_back(earlier)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.counts.seen_B is not None:
            self._take_rows(torch.arange(len(self.counts.seen_B)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._take_rows(indices)

    def _take_rows(self, rows: Tensor) -> None:
        self.counts.take_rows(rows)
        for place, layer in enumerate(self.layers):
            (layer.take_rows if place in self._lag_layers else layer.reorder_cache)(rows)


def cache_bytes(cache: LagKVCache | DynamicCache) -> int:
    """Bytes of keys and values a cache holds over all layers."""
    held = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(z.nbytes for z in held if z is not None)
