"""Samples as token ids, and the batches made of them.

Shape suffixes: B rows of a micro-batch, N = seq_len.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.longalign import Sample
from lrsa_lightning.data.sampler import MicroBatch
from lrsa_lightning.data.template import Template
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedSample:
    """Token ids of a sample; the last ``num_answer`` of them are learned."""

    ids: list[int]
    num_answer: int


class SampleEncoder:
    """Turns samples into token ids of at most ``seq_len``, extended up to it."""

    def __init__(self, tokenizer, template: Template, seq_len: int, extender: Extender | None):
        self._tokenizer = tokenizer
        self._template = template
        self._seq_len = seq_len
        self._extender = extender

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, sample: Sample) -> TokenizedSample | None:
        """None for a sample that is longer than seq_len as it is."""
        template = self._template
        answer = self._ids(template.answer_start + sample.answer + template.answer_end)
        own = self._ids(sample.prompt + template.after)
        before = self._ids(template.before)
        # The last answer token is a target only, so a row of seq_len inputs holds one id more.
        budget = self._seq_len + 1 - len(before) - len(own) - len(answer)
        if budget < 0:
            return None
        sections = self._extender.sections(sample, budget, lambda text: len(self._ids(text))) if self._extender else []
        filling = [token for section in sections for token in self._ids(section)]
        return TokenizedSample(before + filling + own + answer, len(answer))


class LongContextDataset(Dataset):
    """Tokenised samples, indexed by `MicroBatch`: an item is a whole micro-batch."""

    def __init__(self, samples: Sequence[TokenizedSample], seq_len: int, pad_token_id: int):
        self._samples = samples
        self._seq_len = seq_len
        self._pad_token_id = pad_token_id
        self.num_answer_tokens = [sample.num_answer for sample in samples]

    @classmethod
    def prepare(cls, samples: Sequence[Sample], encode: SampleEncoder, seq_len: int, pad_token_id: int):
        """Tokenises samples, leaving out and counting those longer than ``seq_len``.

        Raises:
            InputError: none is left.
        """
        tokenized = [row for row in map(encode, samples) if row is not None]
        if dropped := len(samples) - len(tokenized):
            log.warning("%d of %d samples are longer than data.seq_len %d and left out", dropped, len(samples), seq_len)
        if not tokenized:
            raise InputError(f"no sample fits data.seq_len {seq_len}: raise it, or give data.train_files shorter texts")
        return cls(tokenized, seq_len, pad_token_id)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """A micro-batch.

        Returns:
            input_ids, labels (already shifted, -100 where nothing is learned) and position_ids, int64 [B, N],
            right-padded to exactly seq_len, and num_tokens, the learned tokens of the whole global batch.
        """
        rows = [self._row(self._samples[index]) for index in batch.indices]
        input_ids_BN, labels_BN = (torch.stack(column) for column in zip(*rows, strict=True))
        return {
            "input_ids": input_ids_BN,
            "labels": labels_BN,
            "position_ids": torch.arange(self._seq_len).expand(len(rows), -1),
            "num_tokens": torch.tensor(batch.num_tokens),
        }

    def _row(self, sample: TokenizedSample) -> tuple[Tensor, Tensor]:
        ids = torch.tensor(sample.ids)
        input_ids = torch.full((self._seq_len,), self._pad_token_id)
        labels = torch.full((self._seq_len,), IGNORE_INDEX)
        input_ids[: len(ids) - 1] = ids[:-1]
        labels[len(ids) - 1 - sample.num_answer : len(ids) - 1] = ids[-sample.num_answer :]
        return input_ids, labels
