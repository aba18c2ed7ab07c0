"""Stops a run whose processes have different configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.strategies import Strategy

from lrsa_lightning.errors import InputError
from lrsa_lightning.run_config import RunConfig, differing, short

_MOST_NAMED = 8


class RankGuard:
    """Compares the configurations of all processes before any of them reads data or weights.

    Processes with different configurations would average the gradients of different runs.
    """

    def __init__(self, requested: str, checkpoint: Path | None):
        """
        Args:
            requested: this process's configuration as YAML.
            checkpoint: the one that this process found to resume from.
        """
        self._values = RunConfig(yaml.safe_load(requested)).of_all_ranks
        self._values["checkpoint found"] = checkpoint.name if checkpoint is not None else None

    def watch(self, strategy: Strategy) -> None:
        """Lets the strategy compare as soon as its processes can communicate: Lightning has no hook for this moment.

        Raises:
            InputError: later, in every process, if their values differ.
        """
        setup_environment = strategy.setup_environment

        def setup_and_compare() -> None:
            setup_environment()
            self._compare()

        strategy.setup_environment = setup_and_compare

    def _compare(self) -> None:
        import torch.distributed

        of_ranks: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_ranks, self._values)
        if changes := differing(of_ranks):
            raise InputError(
                "the processes of this run have different configurations\n"
                + "\n".join(f"  {key}: {_describe(values)}" for key, values in changes.items())
                + "\n  start all of them with the same command line, files and environment"
            )


def _describe(values: Sequence[Any]) -> str:
    """Each value once, with the ranks that have it."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(short(value), []).append(rank)
    return ", ".join(f"{value} ({name_ranks(own)})" for value, own in ranks.items())


def name_ranks(ranks: Sequence[int]) -> str:
    """The first of some ranks, and how many more there are."""
    named = ", ".join(map(str, ranks[:_MOST_NAMED]))
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"
