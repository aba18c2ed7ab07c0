"""How many tokens each row of a cache has seen, and which columns of a forward are new tokens of it.

Rows may be padded on the left or on the right, and be unequal in length: each row counts its own tokens alone.

Shape suffixes: B batch, N columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrsa_lightning.errors import InputError


@dataclass(frozen=True)
class NewTokens:
    """The new tokens of a row in one forward.

    Attributes:
        before: tokens that the row has seen before them.
        first: the column of the first one.
        count: how many they are; they are in consecutive columns.
    """

    before: int
    first: int
    count: int

    @property
    def after(self) -> int:
        """Tokens that the row has seen with them."""
        return self.before + self.count

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + self.count)


class TokenCounts:
    """The counts of a cache, which all of its layers share.

    The counts are on the host, where they follow from the shapes, and on a GPU too, where kernels read them: a CUDA
    graph advances those by itself.

    Attributes:
        steps: forwards so far.
        longest: tokens that the longest row has seen.
        rows: what each row gets in the current forward.
        seen_B: int64 [B] on the host, tokens that each row has seen; None before the first forward.
        device_seen_B: the same on a GPU, in one place for good; None elsewhere.
    """

    def __init__(self, lengths: Sequence[int] | None = None):
        """
        Args:
            lengths: true prompt lengths of rows that are padded on the right; None without such padding.
        """
        self._lengths_B = None if lengths is None else torch.tensor(lengths, device="cpu")
        self.reset()

    def reset(self) -> None:
        """Forgets all tokens."""
        self.steps = self.longest = self._num_columns = 0
        self.rows: list[NewTokens] = []
        self.seen_B: Tensor | None = None
        self.device_seen_B: Tensor | None = None
        self._mask_BN: Tensor | None = None

    @property
    def are_single(self) -> bool:
        """Whether each row has one new token in the current forward."""
        return all(row.count == 1 for row in self.rows)

    def announce(self, mask_BN: Tensor | None) -> None:
        """Says which columns of the next forward are tokens: the last ones of an attention mask [B, N]; None for all.

        To read the mask is to wait for the device.
        """
        self._mask_BN = mask_BN

    def advance(self, batch: int, num_columns: int, device: torch.device) -> None:
        """Begins a forward of so many columns.

        Raises:
            InputError: the tokens of a row are not in consecutive columns.
        """
        if self.seen_B is None:
            self.seen_B = torch.zeros(batch, dtype=torch.int64, device="cpu")
            if device.type == "cuda":
                self.device_seen_B = self.seen_B.to(device)
        first_B, count_B = self._new_columns(batch, num_columns)
        counts = (self.seen_B.tolist(), first_B.tolist(), count_B.tolist())
        self.rows = [NewTokens(*numbers) for numbers in zip(*counts, strict=True)]
        self.seen_B = self.seen_B + count_B
        self.longest = max(row.after for row in self.rows)
        if self.device_seen_B is not None:
            if all(row.count == num_columns for row in self.rows):
                self.device_seen_B += num_columns
            else:
                self.device_seen_B.copy_(self.seen_B)
        self._num_columns += num_columns
        self.steps += 1

    def _new_columns(self, batch: int, num_columns: int) -> tuple[Tensor, Tensor]:
        """First column and number of each row's new tokens, int64 [B] on the host."""
        none_B = torch.zeros(batch, dtype=torch.int64, device="cpu")
        mask_BN, self._mask_BN = self._mask_BN, None
        if mask_BN is not None:
            real_BN = (mask_BN[:, -num_columns:] != 0).cpu()
            return consecutive_columns(real_BN)
        if self._lengths_B is not None and self._num_columns < int(self._lengths_B.max()):
            return none_B, (self._lengths_B - self._num_columns).clamp(0, num_columns)
        return none_B, none_B + num_columns

    def replayed(self) -> None:
        """Counts one token a row that a CUDA graph has added on the device."""
        self.seen_B = self.seen_B + 1
        self.longest += 1
        self._num_columns += 1

    def put_back(self, saved: "TokenCounts") -> None:
        """Takes the counts of an earlier copy; those on the device stay in their place."""
        self.steps, self.longest, self._num_columns = saved.steps, saved.longest, saved._num_columns
        self.rows, self.seen_B = saved.rows, saved.seen_B
        if self.device_seen_B is not None:
            self.device_seen_B.copy_(saved.device_seen_B)

    def take_rows(self, rows: Tensor) -> None:
        """Puts other rows in place of these: int64 indices, as beam search reorders and repeats rows."""
        if self.seen_B is None:
            return
        self.seen_B = self.seen_B[rows.cpu()]
        self.longest = int(self.seen_B.max())
        if self._lengths_B is not None:
            self._lengths_B = self._lengths_B[rows.cpu()]
        if self.device_seen_B is not None:
            self.device_seen_B = self.seen_B.to(self.device_seen_B.device)


def consecutive_columns(real_BN: Tensor) -> tuple[Tensor, Tensor]:
    """First column and number of the tokens in each row, int64 [B], given where they are.

    Raises:
        InputError: padding separates tokens of a row.
    """
    first_B, count_B = real_BN.int().argmax(dim=1), real_BN.sum(dim=1)
    places = torch.arange(real_BN.shape[1], device=real_BN.device)
    span_BN = (places >= first_B[:, None]) & (places < (first_B + count_B)[:, None])
    if not torch.equal(span_BN & real_BN, real_BN):
        raise InputError("attention_mask has holes: pad each row on one side alone, before or after its tokens")
    return first_B, count_B
