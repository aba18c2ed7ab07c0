"""A data loader that resumes: its state is how much of the epoch's order all ranks have read."""

import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from lrsa_lightning.data.dataset import LongContextDataset
from lrsa_lightning.data.sampler import GlobalBatchSampler


class ResumableLoader(DataLoader):
    """Yields the sampler's micro-batches, prefetched by workers, and counts those that it yielded.

    Its state is three integers: the order's seed and epoch, and the samples of the epoch that all ranks have read.
    They do not depend on the number of ranks, workers and accumulation steps, so a run may resume with others.
    """

    def __init__(self, dataset: LongContextDataset, sampler: GlobalBatchSampler, num_workers: int):
        # The sampler's items are complete micro-batches: there is nothing to collate.
        super().__init__(
            dataset, batch_size=None, sampler=sampler, num_workers=num_workers, worker_init_fn=outlive_signals
        )
        self._consumed = 0

    def __iter__(self) -> Iterator[dict]:
        # A caller may stop at the last batch: the end of the loop below then never runs.
        self._consumed %= self.sampler.samples_an_epoch
        self.sampler.start = self._consumed
        for batch in super().__iter__():
            self._consumed += self.sampler.samples_at_a_time
            yield batch

    def state_dict(self) -> dict[str, int]:
        # Complete global batches: Lightning also saves within the first step after a resume, without its gradients.
        consumed = self._consumed // self.sampler.global_batch_size * self.sampler.global_batch_size
        return {"seed": self.sampler.seed, "epoch": self.sampler.epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._consumed = state["consumed"]

    def take_back_step(self) -> None:
        """Counts the last global batch as not read, because its optimizer step is not taken."""
        self._consumed -= self.sampler.global_batch_size


def outlive_signals(worker: int) -> None:
    """Schedulers and terminals signal each process of a job. Workers ignore it, and end with their parent."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
