"""The samples of an evaluation, distributed over data-parallel ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import distributed as dist

from lrsa_lightning.ruler.batches import in_turn
from lrsa_lightning.ruler.records import Record


@dataclass(frozen=True)
class Ranks:
    """Which samples this rank scores. All ranks make the same number of forward passes, as ZeRO-3 and FSDP2 need.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        gather: this rank's records of a batch -> those of all ranks, in each of them.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[list[Record]], list[Record]] = list

    @classmethod
    def of_process_group(cls) -> "Ranks":
        """The ranks of torch.distributed's default group, or a single one without such a group."""
        if not dist.is_initialized():
            return cls()

        def gather(records: list[Record]) -> list[Record]:
            return in_turn(_gather(records))

        return cls(dist.get_rank(), dist.get_world_size(), gather)

    def split(self, samples: Sequence) -> tuple[list, int]:
        """This rank's samples and how many of them count.

        Each rank gets equally many. A rank with fewer of its own gets some a second time, which do not count.
        """
        own = list(samples[self.rank :: self.world_size])
        return own + list(samples[: self.most(len(samples)) - len(own)]), len(own)

    def most(self, num_samples: int) -> int:
        """Samples that each rank scores."""
        return -(-num_samples // self.world_size)


def least_of_ranks(value: int) -> int:
    """The least of all ranks' values. All ranks must call it."""
    return min(_gather(value)) if dist.is_initialized() else value


def _gather(value) -> list:
    of_ranks = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, value)
    return of_ranks
