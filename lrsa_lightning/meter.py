"""What an optimizer step adds up to, and the tokens of all steps so far."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrsa_lightning.loss import IGNORE_INDEX


class StepTotals(NamedTuple):
    """An optimizer step, in tensors on the device.

    Attributes:
        loss: the global batch's.
        label_loss: its mean over label tokens.
        seen_tokens: tokens of all steps on all ranks, without padding, and the label tokens among them, int64 [2].
    """

    loss: Tensor
    label_loss: Tensor
    seen_tokens: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """By the names under which they are logged."""
        names = ("train/loss", "train/answer_loss", "train/tokens", "train/answer_tokens")
        return dict(zip(names, (self.loss, self.label_loss, *self.seen_tokens), strict=True))


class StepMeter:
    """Adds micro-batches up to an optimizer step, and steps up to a run.

    Sums stay on the device. Reading `seen_tokens` waits for it, nothing else does.

    Attributes:
        seen_before: tokens of all steps but the last, and the label tokens among them, int64 [2], on the device.
    """

    def __init__(self):
        self._sums: list[Tensor] | None = None
        self._max_labels = 0
        self._seen = self.seen_before = torch.zeros(2, dtype=torch.int64, device="cpu")

    @property
    def is_between_steps(self) -> bool:
        """Whether the last step is complete, and no micro-batch of the next one has been added."""
        return self._sums is None

    @property
    def has_labels(self) -> bool:
        """Whether any rank has label tokens in the current step."""
        return self._max_labels > 0

    @property
    def seen_tokens(self) -> tuple[int, int]:
        """Tokens of all steps on all ranks, without padding, and the label tokens among them."""
        tokens, labels = self._seen.tolist()
        return tokens, labels

    def load(self, seen_tokens: Sequence[int]) -> None:
        """Continues from the `seen_tokens` of a checkpoint."""
        self._seen = torch.tensor(seen_tokens)

    def add(self, batch: dict[str, Tensor], loss: Tensor, label_loss_sum: Tensor | None) -> None:
        """Adds a micro-batch to the current step.

        Args:
            batch: the micro-batch.
            loss: its part of the global batch's loss.
            label_loss_sum: sum of the losses of its label tokens; None where `loss` is their mean.
        """
        parts = [loss.detach(), count_tokens(batch)]
        parts += [] if label_loss_sum is None else [label_loss_sum.detach()]
        self._sums = parts if self._sums is None else [a + b for a, b in zip(self._sums, parts, strict=True)]
        self._max_labels += batch["max_labels_per_rank"]

    def end_step(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> StepTotals:
        """Ends the current step and counts its tokens as seen.

        Args:
            sum_over_ranks: a collective: all ranks end the step together.
        """
        (loss, counts, *label_loss_sum), self._sums, self._max_labels = self._sums, None, 0
        counts = sum_over_ranks(counts)
        self.seen_before = self._seen
        self._seen = counts + self._seen.to(counts.device)
        label_loss = label_loss_sum[0] / counts[1] if label_loss_sum else loss
        return StepTotals(*sum_over_ranks(torch.stack([loss, label_loss])), self._seen)

    def take_back_to(self, seen_before: Tensor) -> None:
        """Removes the tokens of a step and of all later ones, because the optimizer does not take them.

        Args:
            seen_before: that attribute, as it was after the first of these steps.
        """
        self._seen = seen_before


def count_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of a micro-batch without padding, and the label tokens among them: int64 [2]."""
    return torch.stack([batch["lengths"].sum(), (batch["labels"] != IGNORE_INDEX).sum()])
