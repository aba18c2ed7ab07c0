"""One new token a row on a cache's fixed storage: write it, attend to what is held, compress the chunk it completes.

Shape suffixes: B batch, H query heads, G KV heads, T tokens of the storage, D head size, M kept per chunk.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrsa_lightning.attention.fill import sdpa
from lrsa_lightning.attention.rule import LagRule, gather_tokens
from lrsa_lightning.attention.token_counts import NewTokens


class TokenStep:
    """The step of a layer, by torch's operators. The host knows the counts, so it decides what to compress."""

    def __init__(self, rule: LagRule, keys_BGTD: Tensor, values_BGTD: Tensor, rows: Sequence[NewTokens]):
        """
        Args:
            rule: the layer's.
            keys_BGTD: the layer's storage; a row's held tokens come first.
            values_BGTD: their values.
            rows: the new token of each row.
        """
        self._rule, self._storage, self._rows = rule, (keys_BGTD, values_BGTD), rows
        self._are_equal = all(row == rows[0] for row in rows)
        self._places = [rule.stored_len(row.before) for row in rows]

    def append(self, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
        """Writes the new keys after RoPE, and their values."""
        for held, new in zip(self._storage, (k_BG1D, v_BG1D), strict=True):
            if self._are_equal:
                held[:, :, self._places[0]] = new[:, :, 0]
            else:
                every_row = torch.arange(len(self._rows), device=held.device)
                held[every_row, :, torch.tensor(self._places, device=held.device)] = new[:, :, 0]

    def attend(self, q_BH1D: Tensor, scale: float | None) -> Tensor:
        """Attention of the new queries over all that their rows hold, [B, H, 1, D]."""
        longest, mask = max(self._places) + 1, None
        if not self._are_equal:
            place = torch.arange(longest, device=q_BH1D.device)
            mask = (place <= torch.tensor(self._places, device=q_BH1D.device)[:, None])[:, None, None]
        keys, values = (held[:, :, :longest] for held in self._storage)
        return sdpa(q_BH1D, keys, values, mask, scale)

    def compress(self, keep_best: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        """Compresses the chunks that the new tokens complete: the kept tokens and the next chunk move forward.

        Args:
            keep_best: takes keys and values of two chunks, and the position of their first token; gives the offsets of
                the kept tokens, int64 [rows, G, M].
        """
        if not self._rule.drops_tokens:
            return
        rows = [(slice(None), self._rows[0])] if self._are_equal else self._single_rows()
        for row, new in rows:
            if self._rule.compressed_chunks(new.after) > self._rule.compressed_chunks(new.before):
                self._compress(row, new.before, keep_best)

    def _single_rows(self) -> list[tuple[slice, NewTokens]]:
        return [(slice(row, row + 1), new) for row, new in enumerate(self._rows)]

    def _compress(self, row: slice, before: int, keep_best: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        rule, lag = self._rule, self._rule.lag_size
        start = rule.compact_len(before)
        chunks = [held[row, :, start : start + 2 * lag] for held in self._storage]
        idx_BGM = keep_best(*chunks, rule.raw_start(before))
        for z in chunks:
            stays = gather_tokens(z, idx_BGM), z[:, :, lag:].clone()  # copies: they move within the storage
            z[:, :, : rule.kept], z[:, :, rule.kept : rule.kept + lag] = stays


class FusedTokenStep(TokenStep):
    """The same by kernels that read the counts on the GPU: no decision on the host, so a CUDA graph can replay it."""

    def __init__(self, *step, seen_B: Tensor, compresses: bool):
        """
        Args:
            step: as of `TokenStep`.
            seen_B: int64 [B], tokens that each row has seen, the new one included.
            compresses: whether the kernels know the rule's scorer; else the host compresses.
        """
        super().__init__(*step)
        self._seen_B, self._compresses = seen_B, compresses

    def append(self, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
        from lrsa_lightning.attention import decode_kernels

        decode_kernels.append(*self._storage, k_BG1D, v_BG1D, self._seen_B, self._rule)

    def attend(self, q_BH1D: Tensor, scale: float | None) -> Tensor:
        from lrsa_lightning.attention import decode_kernels

        return decode_kernels.attend(q_BH1D, *self._storage, self._seen_B, self._rule, scale)

    def compress(self, keep_best: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        if not self._compresses:
            super().compress(keep_best)
        elif self._rule.drops_tokens:
            from lrsa_lightning.attention import decode_kernels

            decode_kernels.compress(*self._storage, self._seen_B, self._rule)
