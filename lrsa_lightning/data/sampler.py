"""The order of samples depends on (seed, epoch) alone. It is cut into global batches, then into micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from torch.utils.data import DistributedSampler

from lrsa_lightning.errors import InputError


@dataclass(frozen=True)
class MicroBatch:
    """What one rank reads for one forward pass.

    Attributes:
        indices: indices of the samples; none where a rank has no row left, but must forward with the others.
        num_tokens: summed weights of its global batch (all ranks, all accumulation steps): label tokens, or samples.
        max_labels_per_rank: label tokens of the rank that has the most, in the micro-batches read together.
    """

    indices: tuple[int, ...]
    num_tokens: int
    max_labels_per_rank: int


def accumulation_steps(global_batch_size: int, micro_batch_size: int, data_parallel_size: int, given: int = 1) -> int:
    """Micro-batches that a rank accumulates before a step.

    Args:
        global_batch_size: samples of an optimizer step.
        micro_batch_size: samples of a forward pass on one rank.
        data_parallel_size: number of data-parallel ranks.
        given: trainer.accumulate_grad_batches; 1 where the user left it out.

    Raises:
        InputError: the global batch is not a multiple of what all ranks read at a time, or another number was given.
    """
    at_a_time = micro_batch_size * data_parallel_size
    if global_batch_size % at_a_time:
        raise InputError(
            f"data.global_batch_size {global_batch_size} is not a multiple of {at_a_time} = data.micro_batch_size "
            f"{micro_batch_size} x {data_parallel_size} data-parallel ranks: change one of them"
        )
    steps = global_batch_size // at_a_time
    if given not in (1, steps):
        raise InputError(
            f"trainer.accumulate_grad_batches {given} contradicts data.global_batch_size {global_batch_size}, from "
            f"which {steps} follows: leave it out"
        )
    return steps


class GlobalBatchSampler(DistributedSampler):
    """Yields this rank's `MicroBatch`es; what all ranks read together does not depend on their number.

    It leaves out an incomplete global batch at the end of an epoch. It is a DistributedSampler, because Lightning
    would replace any other sampler.

    Attributes:
        epoch: epoch of the order. Lightning sets it at the start of each epoch, and after a resume.
        start: samples of the epoch, over all ranks, that the next iteration leaves out.
    """

    def __init__(
        self,
        weights: Sequence[int],
        num_labels: Sequence[int],
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        data_parallel_size: int,
        seed: int,
        shuffle: bool = True,
    ):
        """
        Args:
            weights: weight of each sample in the loss: its label tokens, or 1.
            num_labels: label tokens of each sample.
            global_batch_size: samples of an optimizer step.
            micro_batch_size: samples of a forward pass on one rank.
            rank: data-parallel rank of this process.
            data_parallel_size: number of data-parallel ranks.
            seed: seed of the order.
            shuffle: False keeps the order of the samples.

        Raises:
            InputError: the batch sizes do not divide, or there are fewer samples than a global batch.
        """
        accumulation_steps(global_batch_size, micro_batch_size, data_parallel_size)
        if len(weights) < global_batch_size:
            raise InputError(
                f"{len(weights)} samples are fewer than data.global_batch_size {global_batch_size}: "
                "lower it, or give more data"
            )
        super().__init__(range(len(weights)), data_parallel_size, rank, shuffle, seed)
        self._weights = weights
        self._num_labels = num_labels
        self.global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self.start = 0

    @property
    def samples_at_a_time(self) -> int:
        """Samples that all ranks read together while each reads one micro-batch."""
        return self._micro_batch_size * self.num_replicas

    @property
    def samples_an_epoch(self) -> int:
        """Samples of the epoch's complete global batches."""
        return len(self._weights) // self.global_batch_size * self.global_batch_size

    def __len__(self) -> int:
        return self.samples_an_epoch // self.samples_at_a_time

    def __iter__(self) -> Iterator[MicroBatch]:
        order = list(range(len(self._weights)))
        if self.shuffle:
            Random(f"{self.seed}:{self.epoch}").shuffle(order)
        for at in range(self.start, self.samples_an_epoch, self.samples_at_a_time):
            first = at // self.global_batch_size * self.global_batch_size
            num_tokens = sum(self._weights[index] for index in order[first : first + self.global_batch_size])
            parts = [
                tuple(order[start : start + self._micro_batch_size])
                for start in range(at, at + self.samples_at_a_time, self._micro_batch_size)
            ]
            max_labels_per_rank = max(sum(self._num_labels[index] for index in part) for part in parts)
            yield MicroBatch(parts[self.rank], num_tokens, max_labels_per_rank)


class EveryRowSampler(DistributedSampler):
    """Yields this rank's `MicroBatch`es of one row each, in the data's order. The ranks read each row once.

    Each rank reads equally often, because a forward pass may need all ranks. A rank that has no row left gets a
    micro-batch without rows.
    """

    def __init__(self, weights: Sequence[int], num_labels: Sequence[int], rank: int, data_parallel_size: int):
        """
        Args:
            weights: weight of each row in the loss: its label tokens, or its samples.
            num_labels: label tokens of each row.
            rank: data-parallel rank of this process.
            data_parallel_size: number of data-parallel ranks.
        """
        super().__init__(range(len(weights)), data_parallel_size, rank, shuffle=False)
        self._weights = weights
        self._num_labels = num_labels

    def __iter__(self) -> Iterator[MicroBatch]:
        for first in range(0, len(self._weights), self.num_replicas):
            together = slice(first, first + self.num_replicas)
            own = first + self.rank
            indices = (own,) if own < len(self._weights) else ()
            yield MicroBatch(indices, sum(self._weights[together]), max(self._num_labels[together]))

    def __len__(self) -> int:
        return -(-len(self._weights) // self.num_replicas)
