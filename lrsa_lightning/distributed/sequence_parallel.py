"""Sequence parallelism: what a user chooses, and what an attention mode becomes when ranks share its sequences.

Shape suffixes: B rows of a micro-batch, N = seq_len, n tokens on this rank.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode, set_attention
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.errors import InputError
from lrsa_lightning.loss import IGNORE_INDEX
from lrsa_lightning.ranges import PositiveInt, checked

log = logging.getLogger(__name__)

Kind = Literal["auto", "ulysses", "context"]


@dataclass(frozen=True)
class SequenceParallel:
    """How ranks share sequences.

    Attributes:
        size: P, neighbouring ranks that share a sequence; 1 is none.
        kind: ulysses exchanges tokens for heads around the attention; context moves only what the rule keeps, or, for
            full attention, all keys; auto is context for LRSA, and for others ulysses where the head counts allow it.
        zigzag: of context, an early and a late part of the sequence on each rank, so that all work as long.
    """

    size: PositiveInt = 1
    kind: Kind = "auto"
    zigzag: bool = True

    @classmethod
    def of(cls, given: "SequenceParallel | Mapping[str, Any] | None") -> "SequenceParallel":
        """What a strategy was given: a choice, a mapping of its fields, or None for no sharing.

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
            InputError: the ranks cannot be dealt to groups of this size.
        """
        if world_size % self.size:
            legal = [size for size in range(1, world_size + 1) if world_size % size == 0]
            raise InputError(
                f"sequence_parallel.size {self.size} does not divide the {world_size} processes of this run "
                f"(trainer.devices x trainer.num_nodes): choose one of {legal}"
            )

    def shard(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup) -> "ShardedAttention":
        """The mode for ranks that share sequences.

        Args:
            mode: the attention mode.
            config: the model's.
            seq_len: N, tokens of every row.
            group: the ranks.

        Raises:
            InputError: neither kind, or not the one asked for, can run this model and length on so many ranks.
        """
        from lrsa_lightning.distributed.context import ContextParallel
        from lrsa_lightning.distributed.ulysses import Ulysses

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


# A dataclass writes its __init__ itself.
SequenceParallel.__init__ = checked(SequenceParallel.__init__)


class ShardedAttention(ABC):
    """An attention mode whose sequences are cut over the ranks of a group.

    Attributes:
        mode: the mode.
        group: the ranks.
        positions: of this rank's tokens, int64 [n]; those from N on are padding.
    """

    kind: Kind
    mode: AttentionMode
    group: SequenceGroup
    positions: Tensor

    def __init__(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup):
        self.mode, self.group, self.seq_len = mode, group, seq_len
        self._layers = config.num_hidden_layers
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // self._heads

    @abstractmethod
    def received_elements(self) -> int:
        """Elements that other ranks send this one in the forward of a layer for one row; about as many come back."""

    @abstractmethod
    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **kwargs) -> Tensor:
        """Attention of this rank's tokens in a layer, [B, n, H, D]."""

    def describe(self) -> str:
        """What was chosen, and what it moves."""
        mebibytes = self.received_elements() * 2 / 2**20
        return (
            f"{self.kind}, {len(self.positions)} of {self.seq_len} tokens on the first rank, which receives "
            f"{mebibytes:.1f} MiB a layer and row in the forward, as much again in the backward (bf16)"
        )

    def install(self, model) -> None:
        """Swaps the attention of a model in which the mode is installed."""
        from transformers import AttentionInterface, AttentionMaskInterface

        name = f"{shared_key(self.kind, self.mode, self.group)}, {self.seq_len} tokens"
        AttentionInterface.register(name, self._transformers_attention)
        AttentionMaskInterface.register(name, lambda *_, **__: None)  # causality is the mode's own
        set_attention(model, name)

    def _transformers_attention(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        if query.shape[2] != len(self.positions) or key.shape[2] != len(self.positions):
            raise ValueError(
                f"this model shares sequences of {self.seq_len} tokens with {self.group.size - 1} other ranks, "
                f"{len(self.positions)} of them here, but met {query.shape[2]}. Use AttentionMode.installed(model) "
                "to run whole sequences."
            )
        return self.attend(module, query, key, value, scaling, **kwargs), None

    def cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a micro-batch of whole rows, which all ranks of the group hold.

        Labels have been shifted before, positions stay those of the row, and the token count that of the global batch.
        """
        rows = {name: z for name, z in batch.items() if isinstance(z, Tensor) and z.ndim == 2}
        padding = max(0, int(self.positions[-1]) + 1 - self.seq_len)
        fill = {"labels": IGNORE_INDEX}
        cut = {
            name: torch.nn.functional.pad(z, (0, padding), value=fill.get(name, 0))[:, self.positions]
            for name, z in rows.items()
        }
        if padding:
            cut["position_ids"] = self.positions.expand(len(cut["position_ids"]), -1)
        is_text_Bn = self.positions < batch["lengths"].unsqueeze(-1)
        return {**batch, **cut, "lengths": is_text_Bn.sum(dim=1)}


def shared_key(kind: str, mode: AttentionMode, group: SequenceGroup) -> str:
    """A name in transformers' registry for a mode that ranks share.

    Not with "flash" in it: transformers would look for a kernel of that name.
    """
    return f"{kind}({mode.registry_key()}, {group.rank} of {group.size})".replace("flash", "Flash")
