"""One decoder layer of the compressed cache, in storage of fixed size.

Shape suffixes: B batch, G KV heads, n new tokens, T tokens of the storage, C compact keys, D head size.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lrsa_lightning.attention.cache_view import CacheView, Piece
from lrsa_lightning.attention.execution import Execution
from lrsa_lightning.attention.layer_call import in_computed_dtype
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule, gather_tokens
from lrsa_lightning.attention.token_counts import NewTokens, TokenCounts
from lrsa_lightning.attention.token_step import FusedTokenStep, TokenStep
from lrsa_lightning.errors import InputError

# Tokens for which storage grows at least, where the longest length is not known.
_LEAST_GROWTH = 256


class LagKVLayer(DynamicLayer):
    """Keys and values of one decoder layer: sink, kept tokens, then everything not yet compressed.

    Each row is compressed at its own chunk boundaries. What a row holds comes first in the storage; the rest is free.

    Attributes:
        rule: the rule of this layer.
        execution: computes the selection.
        view: what `update` left for the attention; None before the first call.
        reach: tokens that a row may see before the storage must grow.
    """

    is_croppable = False

    def __init__(
        self,
        rule: LagRule,
        layer_idx: int,
        execution: Execution,
        owner: str,
        counts: TokenCounts,
        max_tokens: int | None = None,
    ):
        """
        Args:
            rule: the rule of this layer.
            layer_idx: the decoder layer.
            execution: computes the selection.
            owner: the mode or rule that the cache was made for, as text.
            counts: the tokens that the rows have seen, one object for all layers of a cache.
            max_tokens: longest length that a row will reach, which sizes the storage; it grows where None.
        """
        self._storage: tuple[Tensor, Tensor] | None = None
        super().__init__()
        self.rule, self.layer_idx, self.execution = rule, layer_idx, execution
        self._owner, self._counts, self._max_tokens = owner, counts, max_tokens or 0
        self._steps_taken = self.reach = 0
        self.view: CacheView | None = None

    @property
    def keys(self) -> Tensor | None:
        """What the rows hold, [B, G, T, D]: a view of the storage, as long as the row that holds most needs it."""
        return self._held(0)

    @keys.setter
    def keys(self, _: None) -> None:
        """The base class has no keys at first; later ones are written to the storage."""

    @property
    def values(self) -> Tensor | None:
        """The values of `keys`."""
        return self._held(1)

    @values.setter
    def values(self, _: None) -> None:
        """See the setter of `keys`."""

    def _held(self, which: int) -> Tensor | None:
        if self._storage is None:
            return None
        most = max(self.rule.stored_len(seen) for seen in self._counts.seen_B.tolist())
        return self._storage[which][:, :, :most]

    @property
    def storage_bytes(self) -> int:
        """Bytes of the storage, free room included."""
        return 0 if self._storage is None else sum(z.nbytes for z in self._storage)

    def runs_by_kernels(self) -> bool:
        """Whether a step of one token a row leaves every decision to the device."""
        return self._fused and self._compresses_fused

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        value_states = key_states if value_states is None else value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self._storage = tuple(z.new_zeros(*z.shape[:2], 0, z.shape[-1]) for z in (key_states, value_states))
        self._fused = self.execution.decodes_fused(key_states, value_states)
        self._compresses_fused = self.execution.compresses_fused(self.rule, key_states)
        self.is_initialized = True

    @property
    def begins_forward(self) -> bool:
        """Whether the next `update` is the first one of a forward."""
        return self._steps_taken == self._counts.steps

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        """Writes any number of tokens at any offset and compresses the chunks they complete.

        Args:
            key_states: keys after RoPE of the new tokens, [B, G, n, D].
            value_states: their values.

        Returns:
            the new keys and values, in the dtype of the storage. What the queries need is in `view`.
        """
        if self.begins_forward:
            self._counts.advance(len(key_states), key_states.shape[2], key_states.device)
        self._steps_taken = self._counts.steps
        key_states, value_states = in_computed_dtype(key_states), in_computed_dtype(value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._reserve(self._counts.longest)
        self.view = CacheView(self.rule, self._owner)
        new = key_states, value_states
        if key_states.shape[2] == 1 and self._counts.are_single:
            self.view.token = self._token_step()
            self.view.token.append(*new)
        else:
            self.view.pieces = [self._add(rows, tokens, new) for rows, tokens in self._groups()]
        return new

    def _groups(self) -> Iterator[tuple[slice, NewTokens]]:
        """Neighbouring rows that begin alike and have as many chunks compressed, with what the longest one gets.

        The shorter ones get padding with it. It is written to room that is free, or will be when their next token
        comes, and only padding sees it.
        """
        numbered = ((row, tokens) for row, tokens in enumerate(self._counts.rows) if tokens.count)
        for _, group in groupby(numbered, key=self._alike):
            rows, tokens = zip(*group, strict=True)
            yield slice(rows[0], rows[-1] + 1), max(tokens, key=lambda own: own.count)

    def _alike(self, numbered: tuple[int, NewTokens]) -> tuple[int, ...]:
        tokens = numbered[1]
        return tokens.before, tokens.first, self.rule.compressed_chunks(tokens.after)

    def attend(
        self, q_BHnD: Tensor, rule: LagRule, reader: Any, execution: Execution, scale: float | None = None
    ) -> Tensor:
        """Attention of the new tokens over what they see, [B, H, n, D]; once after each `update`.

        Args:
            q_BHnD: their queries after RoPE.
            rule: of the attention.
            reader: the attention mode, for messages.
            execution: computes it.
            scale: of the logits; 1 / sqrt(D) when None.

        Raises:
            InputError: the attention follows another rule.
        """
        pieces, token = self.view.take(rule, reader)
        q_BHnD = q_BHnD.to(self.dtype)
        if token is not None:
            out = token.attend(q_BHnD, scale)
            # The token that completes a chunk attends before anything is compressed.
            token.compress(lambda k, v, start: self.execution.keep_best(self.rule, k, v, self.layer_idx, start))
            return out
        out = q_BHnD.new_zeros(*q_BHnD.shape[:-1], self._storage[1].shape[-1])
        for piece in pieces:
            queries = q_BHnD[piece.rows, :, piece.columns]
            attended = execution.attend_cached(queries, piece.compact, piece.raw, piece.layout, scale)
            if attended.shape == out.shape:
                return attended
            out[piece.rows, :, piece.columns] = attended
        return out

    def _token_step(self) -> TokenStep:
        step = self.rule, *self._storage, self._counts.rows
        if not self._fused:
            return TokenStep(*step)
        return FusedTokenStep(*step, seen_B=self._counts.device_seen_B, compresses=self._compresses_fused)

    def _reserve(self, num_tokens: int) -> None:
        """Makes room for what a row holds on its way to so many tokens."""
        if num_tokens <= self.reach:
            return
        growth = max(_LEAST_GROWTH, num_tokens // 8)
        self.reach = self._max_tokens if num_tokens <= self._max_tokens else num_tokens + growth
        added = self.rule.most_held(self.reach) - self._storage[0].shape[2]
        self._storage = tuple(torch.nn.functional.pad(z, (0, 0, 0, added)) for z in self._storage)

    def _add(self, rows: slice, tokens: NewTokens, new: tuple[Tensor, Tensor]) -> Piece:
        """Writes consecutive new tokens of rows that are alike, and compresses what they complete."""
        rule, before, after = self.rule, tokens.before, tokens.after
        storage = [z[rows] for z in self._storage]
        new = [z[rows, :, tokens.columns] for z in new]
        held, (compact_len, raw_start) = rule.stored_len(before), self._split(before, after)
        layout = KVLayout(rule, compact_len, tokens.count, before, raw_start)
        if rule.compressed_chunks(after) == rule.compressed_chunks(before):
            for z, added in zip(storage, new, strict=True):
                z[:, :, held : held + tokens.count] = added
            compact, raw = ([z[:, :, :compact_len], z[:, :, compact_len : held + tokens.count]] for z in storage)
            compact, raw = zip(compact, raw, strict=True)
            return Piece(rows, tokens.columns, compact, raw, layout)
        # Until the first chunk is compressed, all that is held is raw but for the sink.
        start = rule.compact_len(before) if rule.compressed_chunks(before) else 0
        joined = [torch.cat([z[:, :, start:held], added], dim=2) for z, added in zip(storage, new, strict=True)]
        raw = tuple(z[:, :, compact_len - start :] for z in joined)
        for z, later in zip(storage, joined, strict=True):
            z[:, :, start:compact_len] = later[:, :, : compact_len - start]
        compact_len = self._compress(storage, raw, compact_len, tokens, raw_start)
        compact = tuple(z[:, :, :compact_len] for z in storage)
        return Piece(rows, tokens.columns, compact, raw, KVLayout(rule, compact_len, tokens.count, before, raw_start))

    def _compress(
        self, storage: list[Tensor], raw: tuple[Tensor, Tensor], compact_len: int, tokens: NewTokens, raw_start: int
    ) -> int:
        """Writes what stays of the raw tokens after the compact ones. Returns the compact length then."""
        rule = self.rule
        num_chunks = rule.compressed_chunks(tokens.after) - rule.compressed_chunks(tokens.before)
        scored = (z[:, :, : (num_chunks + 1) * rule.lag_size] for z in raw)
        idx_BGC = self.execution.keep_best(rule, *scored, self.layer_idx, raw_start)
        compact_after = compact_len + idx_BGC.shape[2]
        for z, later in zip(storage, raw, strict=True):
            z[:, :, compact_len:compact_after] = gather_tokens(later, idx_BGC)
            z[:, :, compact_after : rule.stored_len(tokens.after)] = later[:, :, num_chunks * rule.lag_size :]
        return compact_after

    def _split(self, before: int, after: int) -> tuple[int, int]:
        """Length of the compact part and first raw position of what was held at ``before``, seen from ``after``.

        While nothing is compressed the two parts are contiguous. So new tokens of the sink count as compact.
        """
        if self.rule.compressed_chunks(before) == 0:
            sink = min(self.rule.sink_size, after)
            return sink, sink
        return self.rule.compact_len(before), self.rule.raw_start(before)

    def get_seq_length(self) -> int:
        """Tokens seen (not held), of the longest row."""
        return self._counts.longest

    def reset(self) -> None:
        """Empties the layer."""
        self._counts.reset()
        self._storage = self.view = None
        self._steps_taken, self.reach, self.is_initialized = 0, 0, False

    def crop(self, *_) -> None:
        raise InputError(
            "a compressed cache cannot be cropped: the dropped tokens are gone. Assisted decoding, which takes tokens "
            "back, does not work with LRSA"
        )

    def put_back(self, saved: "LagKVLayer") -> None:
        """See `LagKVCache.put_back`."""
        for z, earlier in zip(self._storage, saved._storage, strict=True):
            z.copy_(earlier)
        self._steps_taken, self.view = saved._steps_taken, saved.view

    def take_rows(self, rows: Tensor) -> None:
        """Puts other rows in place of these, by their indices, int64."""
        if self._storage is not None:
            self._storage = tuple(z.index_select(0, rows.to(z.device)) for z in self._storage)
