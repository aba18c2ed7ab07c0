"""Micro-batches of tokenised samples, and which samples share a row.

Shape suffixes: B rows of a micro-batch, N = seq_len.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrsa_lightning.data.encoder import TokenizedSample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.loss import IGNORE_INDEX

LossWeighting: TypeAlias = Literal["token", "sample"]


class LongContextDataset(Dataset):
    """Tokenised samples, indexed by `MicroBatch`: an item is a complete micro-batch.

    Attributes:
        samples: the tokenised samples.
        row_labels: label tokens of each row.
        row_weights: weight of each row in the loss: its label tokens, or its samples.
    """

    def __init__(
        self,
        samples: Sequence[TokenizedSample],
        num_labels: Sequence[int],
        seq_len: int,
        pad_token_id: int,
        weighting: LossWeighting = "token",
        rows: Sequence[Sequence[int]] | None = None,
    ):
        """
        Args:
            samples: each of at most seq_len + 1 token ids.
            num_labels: label tokens of each sample.
            seq_len: N.
            pad_token_id: fills up the rows.
            weighting: whether each label token or each sample has the same weight.
            rows: indices of the samples that share a row; one sample a row when None.
        """
        self.samples = samples
        self._seq_len = seq_len
        self._pad_token_id = pad_token_id
        self._by_sample = weighting == "sample"
        self._is_packed = rows is not None
        self._rows = [[index] for index in range(len(num_labels))] if rows is None else rows
        self.row_labels = [sum(num_labels[index] for index in row) for row in self._rows]
        self.row_weights = [len(row) for row in self._rows] if self._by_sample else self.row_labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, batch: MicroBatch) -> dict[str, Any]:
        """A micro-batch.

        Returns:
            input_ids, labels (already shifted, -100 where there is none) and position_ids (from 0 in each sample),
            int64 [B, N], and weights, float32 [B, N], all right-padded to exactly seq_len; lengths, int64 [B], of the
            rows without padding; num_tokens, the sum of the weights of the global batch: its label tokens, or its
            samples; max_labels_per_rank, of `MicroBatch`, an int; for packed rows cu_seqlens, a list of ints for each
            row: where its samples begin, from 0, and N. A micro-batch without samples is one row of padding.
        """
        samples = [[self.samples[index] for index in self._rows[row]] for row in batch.indices] or [[]]
        rows = [self._row(of_row) for of_row in samples]
        packed = {"cu_seqlens": [self._boundaries(of_row) for of_row in samples]} if self._is_packed else {}
        return {
            **{name: torch.stack([row[name] for row in rows]) for name in rows[0]},
            "num_tokens": torch.tensor(batch.num_tokens),
            "max_labels_per_rank": batch.max_labels_per_rank,
            **packed,
        }

    def _boundaries(self, samples: list[TokenizedSample]) -> list[int]:
        """`cu_seqlens` of a row: padding belongs to its last sample."""
        return [*accumulate((len(sample.ids) - 1 for sample in samples[:-1]), initial=0), self._seq_len]

    def _row(self, samples: list[TokenizedSample]) -> dict[str, Tensor]:
        row = {
            "input_ids": torch.full((self._seq_len,), self._pad_token_id),
            "labels": torch.full((self._seq_len,), IGNORE_INDEX),
            "position_ids": torch.arange(self._seq_len),
            "weights": torch.zeros(self._seq_len, dtype=torch.float32),
        }
        start = 0
        for sample in samples:
            ids = torch.as_tensor(sample.ids, dtype=torch.int64)
            end = start + len(ids) - 1
            row["input_ids"][start:end] = ids[:-1]
            weight = 1 / sum(stop - first for first, stop in sample.spans) if self._by_sample else 1.0
            for first, stop in sample.spans:  # a position's label is the next id
                row["labels"][start + first - 1 : start + stop - 1] = ids[first:stop]
                row["weights"][start + first - 1 : start + stop - 1] = weight
            # Padding continues the positions of the last sample: it is no sample of its own.
            row["position_ids"][start:] = torch.arange(self._seq_len - start)
            start = end
        return row | {"lengths": torch.tensor(start)}


def pack_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Samples that share a row, by best-fit decreasing: the longest first, each where it leaves the least room.

    Args:
        lengths: tokens of each sample, at most ``row_length``.
        row_length: tokens of a row.

    Returns:
        the indices of each row's samples, rows and samples in the order of the data.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[index], 0))
        if at == len(rooms):
            rows.append([index])
            insort(rooms, (row_length - lengths[index], len(rows) - 1))
        else:
            room, row = rooms.pop(at)
            rows[row].append(index)
            insort(rooms, (room - lengths[index], row))
    return sorted(sorted(row) for row in rows)
