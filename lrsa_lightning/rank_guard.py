"""What the processes of a run must have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.strategies import Strategy

from lrsa_lightning.errors import InputError
from lrsa_lightning.resume_guard import leaves, short

# A disk of the node: what lies there depends on the rest of the configuration alone.
_OF_A_NODE = ("data.cache_dir",)
_MOST_NAMED = 8


class RankGuard:
    """Stops a run whose processes were given different configurations: they would average gradients of several runs.

    They are compared as soon as the processes can talk, before any reads data or weights.
    """

    def __init__(self, asked: str, checkpoint: Path | None):
        """
        Args:
            asked: this process's configuration as YAML.
            checkpoint: what it found to go on from.
        """
        self._values = dict(leaves(yaml.safe_load(asked)))
        self._values["checkpoint found"] = checkpoint.name if checkpoint is not None else None
        for key in _OF_A_NODE:
            self._values.pop(key, None)

    def watch(self, strategy: Strategy) -> None:
        """Compares once the strategy has set its processes up: Lightning has no hook of that moment.

        Raises:
            InputError: then, in every process, if their values differ.
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
        if changes := differences(of_ranks):
            raise InputError(
                "the processes of this run were given different configurations\n"
                + "\n".join(f"  {key}: {_describe(values)}" for key, values in changes.items())
                + "\n  start all of them with the same command line, files and environment"
            )


def differences(of_ranks: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values are not the same on all ranks, with each rank's value."""
    keys = dict.fromkeys(key for values in of_ranks for key in values)
    found = {key: [values.get(key) for values in of_ranks] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


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
