"""How several processes divide an evaluation: whole samples, or, where a cache does not fit, its heads too."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal, TypeAlias

import torch
from torch import distributed as dist

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.head_parallel import HeadParallel, most_ranks
from lrsa_lightning.distributed.ulysses import legal_sizes
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.results import CellName, Record

log = logging.getLogger(__name__)

Policy: TypeAlias = Literal["auto", "always", "never"]

# Of the free memory; the rest is for the activations of a piece of the prompt.
_USABLE = 0.8


@dataclass(frozen=True)
class Share:
    """Which of the samples this process scores, of several that each make the same forward passes.

    Attributes:
        rank: of this process, or of its group.
        world_size: number of processes, or of groups.
        gather: this process's records -> those of all of them, in each process.
        group: the ranks that score the same samples together, each with the cache of its own heads; None: alone.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[list[Record]], list[Record]] = list
    group: SequenceGroup | None = None

    @classmethod
    def of_process_group(cls, group: SequenceGroup | None = None) -> "Share":
        """One share for each process of torch.distributed's group; everything where there is none.

        Args:
            group: of neighbours, this process's; each such group then has one share.
        """
        if not dist.is_initialized():
            return cls()
        size = 1 if group is None else group.size

        def gather(records: list[Record]) -> list[Record]:
            of_ranks: list[list[Record]] = [[]] * dist.get_world_size()
            dist.all_gather_object(of_ranks, records)
            return [record for column in zip_longest(*of_ranks[::size]) for record in column if record is not None]

        return cls(dist.get_rank() // size, dist.get_world_size() // size, gather, group)

    def deal(self, samples: Sequence) -> tuple[list, int]:
        """This process's samples, as many as any other's has, and how many of them are its own.

        A process with fewer gets some a second time, which nobody counts.
        """
        mine = list(samples[self.rank :: self.world_size])
        most = -(-len(samples) // self.world_size)
        return mine + list(samples[: most - len(mine)]), len(mine)

    def spread(self, mode: AttentionMode, config) -> AttentionMode:
        """The mode as this process runs it."""
        return mode if self.group is None else HeadParallel(mode, config, self.group)


class Sharing:
    """Which cells of an evaluation ranks score together, and which each of them alone."""

    def __init__(self, policy: Policy, size: int, config):
        """
        Args:
            policy: always; never; or auto, where the cache of a batch does not fit in what is free on a device.
            size: neighbouring ranks that share sequences in training. As many of them as the heads can be dealt to
                score together.
            config: the model's.

        Raises:
            InputError: always, but the heads cannot be dealt to any part of so many ranks.
        """
        self._policy: Policy = policy if size > 1 or policy == "always" else "never"
        self._degree = most_ranks(config, size)
        self._said: list[CellName] = []
        if policy == "always" and self._degree == 1:
            heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
            legal = ", ".join(str(ranks) for ranks in legal_sizes(heads, kv_heads)[1:])
            raise InputError(
                f"RulerEval.sequence_parallel always: {heads} query and {kv_heads} KV heads can be shared by {legal} "
                f"ranks, and trainer.strategy's sequence_parallel.size {size} divides by none of them: take auto"
            )

    def shares(self, evaluator, model) -> dict[CellName, Share]:
        """This process's share of the cells that are scored together; all processes must ask.

        Args:
            evaluator: the `RulerEvaluator`.
            model: which it will score, as it then lies in memory.
        """
        if self._policy == "always":
            return dict.fromkeys(evaluator.cells, self._share)
        if self._policy == "never" or (free := free_bytes(model.device)) is None:
            return {}
        of_ranks: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(of_ranks, free)
        needed = {cell: evaluator.cache_bytes(cell, model, Share.of_process_group()) for cell in evaluator.cells}
        too_large = {cell: size for cell, size in needed.items() if size > _USABLE * min(of_ranks)}
        self._say(too_large, min(of_ranks))
        return dict.fromkeys(too_large, self._share) if self._degree > 1 else {}

    @cached_property
    def _share(self) -> Share:
        """Made by all processes together, at its first use."""
        return Share.of_process_group(SequenceGroup.of_world(self._degree))

    def _say(self, too_large: dict[CellName, int], free: int) -> None:
        """Once for each choice of cells."""
        if too_large and [*too_large] != self._said and dist.get_rank() == 0:
            sizes = ", ".join(f"{t}/{n}/{budget} {size / 2**30:.1f}" for (t, n, budget), size in too_large.items())
            how = f"{self._degree} ranks share the heads" if self._degree > 1 else "nor can ranks share the heads"
            text = "RULER: caches do not fit in %d%% of the %.1f GiB free, and %s. Their GiB: %s"
            log.info(text, 100 * _USABLE, free / 2**30, how, sizes)
        self._said = [*too_large]


def free_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator that can be had, what torch holds in reserve included; None on CPUs."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)
