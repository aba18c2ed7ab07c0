"""The batches made of tokenised samples.

Shape suffixes: B rows of a micro-batch, N = seq_len.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrsa_lightning.data.encoder import TokenizedSample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.loss import IGNORE_INDEX

LossWeighting: TypeAlias = Literal["token", "sample"]


class LongContextDataset(Dataset):
    """Tokenised samples, indexed by `MicroBatch`: an item is a whole micro-batch."""

    def __init__(
        self,
        samples: Sequence[TokenizedSample],
        num_answer: Sequence[int],
        seq_len: int,
        pad_token_id: int,
        weighting: LossWeighting = "token",
    ):
        """
        Args:
            samples: token ids of at most seq_len + 1.
            num_answer: learned tokens of each sample.
            seq_len: N.
            pad_token_id: fills the rows up.
            weighting: what counts as much as any other: each learned token, or each sample.
        """
        self._samples = samples
        self._seq_len = seq_len
        self._pad_token_id = pad_token_id
        self._by_sample = weighting == "sample"
        self.sample_weights = [1] * len(num_answer) if self._by_sample else list(num_answer)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """A micro-batch.

        Returns:
            input_ids, labels (already shifted, -100 where nothing is learned) and position_ids, int64 [B, N], and
            weights, float32 [B, N], right-padded to exactly seq_len; num_tokens, the weights' sum over the whole
            global batch: its learned tokens, or its samples.
        """
        rows = [self._row(self._samples[index]) for index in batch.indices]
        input_ids_BN, labels_BN, weights_BN = (torch.stack(column) for column in zip(*rows, strict=True))
        return {
            "input_ids": input_ids_BN,
            "labels": labels_BN,
            "position_ids": torch.arange(self._seq_len).expand(len(rows), -1),
            "weights": weights_BN,
            "num_tokens": torch.tensor(batch.num_tokens),
        }

    def _row(self, sample: TokenizedSample) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.as_tensor(sample.ids, dtype=torch.int64)
        input_ids = torch.full((self._seq_len,), self._pad_token_id)
        labels = torch.full((self._seq_len,), IGNORE_INDEX)
        weights = torch.zeros(self._seq_len, dtype=torch.float32)
        answer = slice(len(ids) - 1 - sample.num_answer, len(ids) - 1)
        input_ids[: len(ids) - 1] = ids[:-1]
        labels[answer] = ids[-sample.num_answer :]
        weights[answer] = 1 / sample.num_answer if self._by_sample else 1.0
        return input_ids, labels, weights
