"""Stops a run whose processes have different configurations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed
import yaml
from lightning.pytorch.strategies import Strategy

from lrsa_lightning.errors import InputError, listed
from lrsa_lightning.run.config import RunConfig, differing, short

_MOST_NAMED = 8


def once_connected(strategy: Strategy, action: Callable[[], None]) -> None:
    """Lets a strategy run an action as soon as its processes can communicate; Lightning has no hook for this moment."""
    setup_environment = strategy.setup_environment

    def setup_then_act() -> None:
        setup_environment()
        action()

    strategy.setup_environment = setup_then_act


def compare_ranks(strategy: Strategy, requested: str, checkpoint: Path | None) -> None:
    """Compares the configurations of all processes before any of them reads data or weights.

    Processes with different configurations would average the gradients of different runs. The checkpoint that each
    found to resume from must also be the same. The strategy compares once its processes can communicate.

    Raises:
        InputError: later, in every process, if their values differ.
    """
    values = RunConfig(yaml.safe_load(requested)).of_all_ranks
    values["checkpoint found"] = checkpoint.name if checkpoint is not None else None
    once_connected(strategy, lambda: _compare(values))


def _compare(values: Mapping[str, Any]) -> None:
    of_ranks: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_ranks, values)
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
    return f"rank{'s' if len(ranks) > 1 else ''} {listed([*map(str, ranks)], _MOST_NAMED)}"
