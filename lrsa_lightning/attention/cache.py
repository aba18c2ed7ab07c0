"""The LRSA rule as a transformers Cache: it holds S + r * N + at most 2L tokens a layer.

Shape suffixes: B batch, G KV heads, N tokens, n new tokens, T tokens held, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrsa_lightning.attention.cache_view import WAY_OUT, CacheView
from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule, gather_tokens, rule_of
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt, checked


class LagKVLayer(DynamicLayer):
    """Keys and values of one decoder layer: sink, kept tokens, then everything not yet compressed.

    Rows of unequal prompts take part in the same forward passes of the prefill. The layer saves each row's state where
    the row's prompt ends. After the longest prompt it aligns the rows on the right, and each row compresses at its own
    boundaries.

    Attributes:
        rule: the rule of this layer.
        execution: computes the selection.
        owner: the mode or rule that the cache was made for, as text.
        seen: tokens of the longest row so far.
        view: how to read what `update` returned last; None before the first call.
    """

    is_croppable = False

    def __init__(
        self, rule: LagRule, layer_idx: int, execution: Execution, owner: str, lengths: Sequence[int] | None = None
    ):
        super().__init__()
        self.owner = owner
        self.rule = rule
        self.layer_idx = layer_idx
        self.execution = execution
        self.seen = 0
        self.prompt_lengths = list(lengths) if lengths is not None and len(set(lengths)) > 1 else None
        self.view: CacheView | None = None
        self._ended_rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._row_seen: list[int] | None = None
        self._row_padding: list[int] = []
        self._row_padding_B: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], (key_states if value_states is None else value_states)[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        """Appends any number of tokens at any offset and compresses the chunks they complete.

        Args:
            key_states: keys after RoPE of the new tokens, [B, G, n, D].
            value_states: their values.

        Returns:
            keys and values [B, G, T, D] that the queries of the new tokens need; `view` says how to read them.

        Raises:
            ValueError: rows of unequal length got more than one token at a time after their prompts.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._row_seen is not None:
            return self._update_rows(key_states, value_states)
        before, self.seen = self.seen, self.seen + key_states.shape[2]
        new = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
        compact_len, raw_start = self._split(before, self.seen)
        if self.prompt_lengths is not None:
            self._save_ended_rows(new, before)
        (keys, values), (self.keys, self.values), compact_len = self._compress(new, before, self.seen)
        if self.prompt_lengths is not None and self.seen >= max(self.prompt_lengths):
            self._align_rows()
        layout = KVLayout(self.rule, compact_len, self.seen - before, before, raw_start)
        self.view = CacheView(self.rule, self.owner, layout)
        return keys, values

    def _split(self, before: int, after: int) -> tuple[int, int]:
        """Length of the compact part and first raw position of what was held at ``before``, seen from ``after``.

        While nothing is compressed the two parts are contiguous. So new tokens of the sink count as compact.
        """
        if self.rule.compressed_chunks(before) == 0:
            sink = min(self.rule.sink_size, after)
            return sink, sink
        return self.rule.compact_len(before), self.rule.raw_start(before)

    def _compress(self, held: tuple[Tensor, Tensor], before: int, after: int):
        """Compresses the chunks that the tokens from ``before`` to ``after`` complete.

        Returns:
            keys and values that the new queries need, those that the layer goes on holding, and the compact length of
            the former.
        """
        compact_len, raw_start = self._split(before, after)
        num_chunks = self.rule.compressed_chunks(after) - self.rule.compressed_chunks(before)
        if num_chunks == 0:
            return held, held, compact_len
        lag_size = self.rule.lag_size
        raw = tuple(z[:, :, compact_len:] for z in held)
        scored = (z[:, :, : (num_chunks + 1) * lag_size] for z in raw)
        kept_idx = self.execution.keep_best(self.rule, *scored, self.layer_idx, raw_start)
        compact = [
            torch.cat([z[:, :, :compact_len], gather_tokens(r, kept_idx)], dim=2)
            for z, r in zip(held, raw, strict=True)
        ]
        needed = tuple(torch.cat(parts, dim=2) for parts in zip(compact, raw, strict=True))
        stays = tuple(
            torch.cat([c, r[:, :, num_chunks * lag_size :]], dim=2) for c, r in zip(compact, raw, strict=True)
        )
        return needed, stays, compact[0].shape[2]

    def _save_ended_rows(self, new: tuple[Tensor, Tensor], before: int) -> None:
        """Saves the state of each row whose prompt ends within the new tokens, without the padding after it."""
        for row, length in enumerate(self.prompt_lengths):
            if before < length <= self.seen:
                padding = self.seen - length
                held = tuple(z[row : row + 1, :, : z.shape[2] - padding] for z in new)
                self._ended_rows[row] = self._compress(held, before, length)[1]

    def _align_rows(self) -> None:
        """Aligns the rows on the right, each with its own length, ready for decoding."""
        rows = [self._ended_rows[row] for row in range(len(self.prompt_lengths))]
        longest = max(k.shape[2] for k, _ in rows)
        self.keys, self.values = (
            torch.cat([torch.nn.functional.pad(z, (0, 0, longest - z.shape[2], 0)) for z in column])
            for column in zip(*rows, strict=True)
        )
        self._row_seen, self._ended_rows = list(self.prompt_lengths), {}
        self._set_row_padding([longest - k.shape[2] for k, _ in rows])

    def _set_row_padding(self, padding: list[int]) -> None:
        """Stores how many unused keys each row has in front, and drops those that all rows have."""
        spare = min(padding)
        self._row_padding = [own - spare for own in padding]
        # Copied to the device once until a row compresses: each copy waits for the device.
        self._row_padding_B = torch.tensor(self._row_padding, device=self.keys.device)
        self.keys, self.values = self.keys[:, :, spare:], self.values[:, :, spare:]

    def _update_rows(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Appends one token to rows of unequal length; a row that completes a chunk compresses alone."""
        if key_states.shape[2] != 1:
            raise ValueError(
                f"rows of unequal length take one token at a time after their prompts, got {key_states.shape[2]}: "
                "their chunk boundaries differ"
            )
        keys, values = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
        self.view = CacheView(self.rule, self.owner, padding_B=self._row_padding_B)
        before, self._row_seen = self._row_seen, [seen + 1 for seen in self._row_seen]
        self.seen += 1
        self.keys, self.values = keys, values
        compressed = self.rule.compressed_chunks
        complete = [row for row, seen in enumerate(before) if compressed(seen) != compressed(seen + 1)]
        if complete:
            # The newest query still reads the tokens that are now dropped.
            self.keys, self.values = keys.clone(), values.clone()
            padding = [
                self._compress_row(r, before[r]) if r in complete else p for r, p in enumerate(self._row_padding)
            ]
            self._set_row_padding(padding)
        return keys, values

    def _compress_row(self, row: int, before: int) -> int:
        """Compresses in place the chunk that a row has completed. Returns the padding that the row then has."""
        held = tuple(z[row : row + 1, :, self._row_padding[row] :] for z in (self.keys, self.values))
        stays = self._compress(held, before, before + 1)[1]
        padding = self.keys.shape[2] - stays[0].shape[2]
        for z, own in zip((self.keys, self.values), stays, strict=True):
            z[row : row + 1, :, padding:] = own
        return padding

    def get_seq_length(self) -> int:
        """Tokens seen (not held), of the longest row."""
        return self.seen

    def reset(self) -> None:
        """Empties the layer."""
        self.keys = self.values = self._row_seen = self.view = None
        self.seen, self._ended_rows, self.is_initialized = 0, {}, False

    def crop(self, *_) -> None:
        raise ValueError("a compressed cache cannot be cropped: the dropped tokens are gone (assisted decoding?)")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._refuse_unequal_rows("beam search")
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._refuse_unequal_rows("repeating rows")
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._refuse_unequal_rows("selecting rows")
        super().batch_select_indices(indices)

    def _refuse_unequal_rows(self, what: str) -> None:
        if self.prompt_lengths is not None:
            raise ValueError(f"{what} needs rows of equal length: each row of this cache has its own boundaries")


class LagKVCache(Cache):
    """A key-value cache compressed as training compresses (LRSA), for transformers' `generate` and ours.

    `AttentionMode.make_cache` makes it. After N tokens a layer holds `LagRule.stored_len(N)` of them, a layer in
    `skip_layers` all.
    """

    @checked
    def __init__(self, mode_or_rule: Any, config, lengths: Sequence[PositiveInt] | None = None):
        """
        Args:
            mode_or_rule: the `LRSA` whose rule it follows in each layer, or a `LagRule` for all layers.
            config: the model's configuration.
            lengths: true prompt lengths of right-padded rows, for rows of unequal length.

        Raises:
            InputError: the mode cannot be exact for this model, or a length is below 1.
        """
        if not isinstance(mode_or_rule, LagRule):
            mode_or_rule.check(config)
        self._config = config.get_text_config(decoder=True)
        self._rules = [rule_of(mode_or_rule, layer) for layer in range(self._config.num_hidden_layers)]
        execution = getattr(mode_or_rule, "execution", Execution())
        self._owner = repr(mode_or_rule)
        super().__init__(
            layers=[LagKVLayer(rule, layer, execution, self._owner, lengths) for layer, rule in enumerate(self._rules)]
        )

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """`LagKVLayer.update` of a layer.

        Raises:
            InputError: the model runs another mode than the cache's. Its configuration says so, or no attention under
                the rule has read the keys that a layer returned last.
        """
        is_other = layer_idx == 0 and not self._is_installed()
        # The layer before this one; for the first layer, the last one of the previous call.
        before = self.layers[layer_idx - 1].view
        if is_other or (before is not None and not before.taken):
            raise InputError(
                f"this cache follows {self._owner}, which is not installed in the model: another attention reads "
                f"its keys. {WAY_OUT}"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _is_installed(self) -> bool:
        installed = self._config._attn_implementation
        if installed is None:  # of a configuration without a model
            return True
        owner = getattr(ALL_ATTENTION_FUNCTIONS.get(installed), "__self__", None)  # the mode, of its bound method
        rule = getattr(owner, "rule", None)  # sharded attention has a rule too, but as a value, and takes no cache
        return callable(rule) and [rule(layer) for layer in range(len(self._rules))] == self._rules


def cache_bytes(cache: LagKVCache | DynamicCache) -> int:
    """Bytes of keys and values a cache holds over all layers."""
    return sum(z.nbytes for layer in cache.layers for z in (layer.keys, layer.values) if z is not None)
