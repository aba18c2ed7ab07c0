"""A data loader that resumes: its state is what of the epoch's order has been read, over all ranks."""

import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from lrsa_lightning.data.dataset import LongContextDataset
from lrsa_lightning.data.sampler import GlobalBatchSampler


class ResumableLoader(DataLoader):
    """Yields the sampler's micro-batches, prefetched by workers, and counts those that were taken.

    Its state is three integers: the order's seed and epoch, and the samples of the epoch consumed by all ranks. They
    mean the same to any number of ranks, workers and accumulation steps, so a run may resume with others.
    """

    def __init__(self, dataset: LongContextDataset, sampler: GlobalBatchSampler, num_workers: int):
        # The sampler's items are whole micro-batches, so nothing is collated.
        super().__init__(
            dataset, batch_size=None, sampler=sampler, num_workers=num_workers, worker_init_fn=outlive_signals
        )
        self._consumed = 0

    def __iter__(self) -> Iterator[dict]:
        # Whoever iterates may stop at the last batch without asking for one more, so an epoch's end is not seen here.
        self._consumed %= self.sampler.samples_an_epoch
        self.sampler.start = self._consumed
        for batch in super().__iter__():
            self._consumed += self.sampler.samples_at_a_time
            yield batch

    def state_dict(self) -> dict[str, int]:
        # Whole global batches: Lightning also saves amid the first step after a resume, whose gradients are not saved.
        consumed = self._consumed // self.sampler.global_batch_size * self.sampler.global_batch_size
        return {"seed": self.sampler.seed, "epoch": self.sampler.epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._consumed = state["consumed"]

    def take_back_step(self) -> None:
        """Counts the last global batch as not read, because its optimizer step is not taken."""
        self._consumed -= self.sampler.global_batch_size


def outlive_signals(worker: int) -> None:
    """Schedulers and terminals signal every process of a job: the first one decides, and its workers end with it."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
