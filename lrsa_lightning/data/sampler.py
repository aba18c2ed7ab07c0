"""The order of samples: a function of (seed, epoch), cut into global batches, then into micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from torch.utils.data import DistributedSampler

from lrsa_lightning.errors import InputError


@dataclass(frozen=True)
class MicroBatch:
    """What one rank reads for one forward pass.

    Attributes:
        indices: of the samples; none where a rank only keeps the others company.
        num_tokens: label tokens of the global batch (all ranks, all accumulation steps) it belongs to.
        max_labels_per_rank: the most label tokens that any rank has in the micro-batches read together.
    """

    indices: tuple[int, ...]
    num_tokens: int
    max_labels_per_rank: int


def accumulation_steps(global_batch_size: int, micro_batch_size: int, data_parallel_size: int) -> int:
    """Micro-batches a rank accumulates before a step.

    Raises:
        InputError: the global batch is not a multiple of what all ranks read at a time.
    """
    at_a_time = micro_batch_size * data_parallel_size
    if global_batch_size % at_a_time:
        raise InputError(
            f"data.global_batch_size {global_batch_size} is not a multiple of {at_a_time} = data.micro_batch_size "
            f"{micro_batch_size} x {data_parallel_size} data-parallel ranks: change one of them"
        )
    return global_batch_size // at_a_time


class GlobalBatchSampler(DistributedSampler):
    """Yields this rank's `MicroBatch`es; what all ranks read together does not depend on their number.

    An incomplete global batch at an epoch's end is left out. A DistributedSampler, so that Lightning puts no other in
    its place.

    Attributes:
        global_batch_size: samples of an optimizer step.
        seed: of the order.
        epoch: of the order.
        start: samples of the epoch's order, over all ranks, that the next iteration leaves out.
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
            weights: what each sample counts in the loss: its label tokens, or 1.
            num_labels: label tokens of each sample.
            global_batch_size: samples of an optimizer step.
            micro_batch_size: samples of a forward pass on one rank.
            rank: data-parallel rank of this process.
            data_parallel_size: number of data-parallel ranks.
            seed: of the order.
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

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch, and after a resume."""
        self.epoch = epoch

    @property
    def samples_at_a_time(self) -> int:
        """Samples that all ranks read together while each reads one micro-batch."""
        return self._micro_batch_size * self.num_replicas

    @property
    def samples_an_epoch(self) -> int:
        """Samples of the epoch's whole global batches."""
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
    """Yields this rank's `MicroBatch`es of one row each, in the data's order: together the ranks read each row once.

    Each rank reads as often as the others, because a forward pass may need them all. A rank that has no row left gets a
    micro-batch without any.
    """

    def __init__(self, weights: Sequence[int], num_labels: Sequence[int], rank: int, data_parallel_size: int):
        """
        Args:
            weights: what each row counts in the loss: its label tokens, or its samples.
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
