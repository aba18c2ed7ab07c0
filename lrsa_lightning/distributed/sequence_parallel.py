"""Sequence parallelism: the user's settings, and the choice of its kind for a model, an attention mode and a length."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.distributed.context import ContextParallel
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
from lrsa_lightning.distributed.ulysses import Ulysses
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt, checked

log = logging.getLogger(__name__)


@checked
@dataclass(frozen=True)
class SequenceParallel:
    """How the ranks of a group divide each sequence.

    Attributes:
        size: P, the sequence-parallel degree: as many neighbouring ranks form a group; 1 divides no sequence.
        kind: ulysses exchanges tokens for heads around the attention. context moves only the keys and values that the
            rule keeps, for full attention all of them. auto takes context for LRSA; for other modes it takes ulysses
            where the numbers of heads allow it.
        zigzag: for context: an early and a late segment of the sequence on each rank, which balances the work.
    """

    size: PositiveInt = 1
    kind: Literal["auto", "ulysses", "context"] = "auto"
    zigzag: bool = True

    @classmethod
    def of(cls, given: "SequenceParallel | Mapping[str, Any] | None") -> "SequenceParallel":
        """The settings from an instance, a mapping of its fields, or None for the defaults.

        Raises:
            InputError: it is neither, a field does not exist, or its value lies outside its range.
        """
        if given is None or isinstance(given, cls):
            return given or cls()
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or not given.keys() <= {*names}:
            raise InputError(f"sequence_parallel is {given!r}, but must be a mapping of {', '.join(names)}")
        return cls(**given)

    def check_world(self, world_size: int) -> None:
        """
        Raises:
            InputError: the degree does not divide the number of ranks.
        """
        if world_size % self.size:
            legal = [size for size in range(1, world_size + 1) if world_size % size == 0]
            raise InputError(
                f"sequence_parallel.size {self.size} does not divide the {world_size} processes of this run "
                f"(trainer.devices x trainer.num_nodes): choose one of {legal}"
            )

    def shard(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup) -> ShardedAttention:
        """The attention mode on this rank's tokens, by the first kind that is possible.

        Args:
            mode: the attention mode.
            config: the model's.
            seq_len: N, tokens of every row.
            group: the sequence-parallel group.

        Raises:
            InputError: the chosen kind, or each kind under auto, is impossible for this model, length and degree.
        """
        kinds = {"ulysses": Ulysses, "context": partial(ContextParallel, zigzag=self.zigzag)}
        order = ["context", "ulysses"] if mode.prefers_context_parallel else ["ulysses", "context"]
        refusals = []
        for kind in order if self.kind == "auto" else [self.kind]:
            try:
                sharded = kinds[kind](mode, config, seq_len, group)
            except InputError as error:
                refusals.append(f"{kind}: {error}")
                continue
            if group.rank == 0:
                log.info("sequence parallelism over %d ranks: %s", group.size, sharded.describe())
            return sharded
        raise InputError(f"sequence_parallel.size {group.size} is not possible here. " + "; ".join(refusals))
