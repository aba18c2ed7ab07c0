"""Attention over sequences that are divided among the ranks of a sequence-parallel group.

Shape suffixes: B rows of a micro-batch, N = seq_len, n tokens on this rank, H query heads, G KV heads, D head size.
"""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import pad

from lrsa_lightning.attention.base import AttentionMode, set_attention
from lrsa_lightning.decoder_sizes import head_dim, kv_heads
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.loss import IGNORE_INDEX


class ShardedAttention(ABC):
    """An attention mode on this rank's tokens of each sequence.

    Attributes:
        kind: the name of this kind of sequence parallelism in YAML.
        mode: the attention mode.
        group: the sequence-parallel group.
        positions: the positions of this rank's tokens, int64 [n]. Positions from N on are padding.
    """

    kind: str
    positions: Tensor

    def __init__(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup):
        """
        Args:
            mode: the attention mode.
            config: the model's.
            seq_len: N.
            group: the sequence-parallel group.

        Raises:
            InputError: this kind cannot divide the sequences of this model among so many ranks.
        """
        self.mode, self.group, self.seq_len = mode, group, seq_len
        self._heads, self._kv_heads, self._head_dim = config.num_attention_heads, kv_heads(config), head_dim(config)

    @abstractmethod
    def received_elements(self) -> int:
        """Elements that this rank receives from others in the forward of one layer for one row.

        The backward moves about as many.
        """

    @abstractmethod
    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **kwargs) -> Tensor:
        """Attention of this rank's tokens in one layer: [B, n, H, D].

        Arguments are those of transformers' attention functions. A scale of None is 1 / sqrt(D).
        """

    def describe(self) -> str:
        """The chosen kind and its communication, for the log."""
        mebibytes = self.received_elements() * 2 / 2**20
        return (
            f"{self.kind}, {len(self.positions)} of {self.seq_len} tokens on the first rank, which receives "
            f"{mebibytes:.1f} MiB a layer and row in the forward, as much again in the backward (bf16)"
        )

    def install(self, model) -> None:
        """Swaps the attention of a model in which the mode is installed."""
        from transformers import AttentionInterface

        ranks = f"rank {self.group.rank} of {self.group.size}, {self.seq_len} tokens"
        # transformers would look for a kernel if the name contained "flash".
        name = f"{self.kind}({self.mode.registry_key()}, {ranks})".replace("flash", "Flash")
        # Without a mask function: causality is the mode's own, and transformers does not search for packed rows.
        AttentionInterface.register(name, self._transformers_attention)
        set_attention(model, name)

    def _transformers_attention(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        if query.shape[2] != len(self.positions) or key.shape[2] != len(self.positions):
            raise ValueError(
                f"this rank holds {len(self.positions)} of the {self.seq_len} tokens of a sequence (degree "
                f"{self.group.size}), but the attention received {query.shape[2]} tokens. Use "
                "AttentionMode.installed(model) to run complete sequences."
            )
        return self.attend(module, query, key, value, scaling, **kwargs), None

    def cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a micro-batch, given the complete rows that all ranks of the group hold.

        Labels are already shifted. Positions stay those of the row. The token count stays that of the global batch.
        """
        padding = max(0, int(self.positions[-1]) + 1 - self.seq_len)
        cut = {
            name: pad(z, (0, padding), value=IGNORE_INDEX if name == "labels" else 0)[:, self.positions]
            for name, z in batch.items()
            if isinstance(z, Tensor) and z.ndim == 2
        }
        if padding:
            cut["position_ids"] = self.positions.expand(len(cut["position_ids"]), -1)
        is_text_Bn = self.positions < batch["lengths"].unsqueeze(-1)
        return {**batch, **cut, "lengths": is_text_Bn.sum(dim=1)}
