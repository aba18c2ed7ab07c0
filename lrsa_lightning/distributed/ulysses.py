"""Ulysses (arXiv 2309.14509): an all-to-all before the attention exchanges a rank's tokens for its share of the heads.

Shape suffixes: B batch, H query heads, h those of this rank, G KV heads, N tokens of the row, n tokens on this rank,
P ranks, D head size.
"""

import copy

import torch
from torch import Tensor

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.layer_call import in_computed_dtype
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
from lrsa_lightning.errors import InputError


class Ulysses(ShardedAttention):
    """Any attention mode: each rank attends over complete sequences with its share of the heads."""

    kind = "ulysses"

    def __init__(self, mode: AttentionMode, config, seq_len: int, group: SequenceGroup):
        super().__init__(mode, config, seq_len, group)
        legal = legal_degrees(self._heads, self._kv_heads)
        if group.size not in legal:
            raise InputError(
                f"{self._heads} query and {self._kv_heads} KV heads can be divided among "
                f"{', '.join(map(str, legal))} ranks, not {group.size}"
            )
        num_local = -(-seq_len // group.size)
        self.positions = torch.arange(num_local, device="cpu") + group.rank * num_local
        # The rank's first KV head. With fewer heads than ranks, neighbouring ranks hold copies of one.
        self._inner = mode.for_heads(group.rank * self._kv_heads // group.size)

    def received_elements(self) -> int:
        heads = 2 * self._heads + 2 * max(self._kv_heads, self.group.size)
        return heads * len(self.positions) * self._head_dim * (self.group.size - 1) // self.group.size

    def attend(self, module, q_BHnD: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, scale: float | None, **kwargs) -> Tensor:
        kwargs.pop("position_ids", None)  # of this rank's tokens, while the attention receives the complete row
        copies = max(1, self.group.size // k_BGnD.shape[1])
        k_BGnD, v_BGnD = (z.repeat_interleave(copies, dim=1) if copies > 1 else z for z in (k_BGnD, v_BGnD))
        q, k, v = self._tokens_for_heads(*(in_computed_dtype(z) for z in (q_BHnD, k_BGnD, v_BGnD)))
        layer = LayerOfHeads(module, q.shape[1] // k.shape[1], self.mode)
        out_BNhD, _ = self._inner.attention_function()(layer, q, k, v, None, scaling=scale, **kwargs)
        return self._heads_for_tokens(out_BNhD)

    def _tokens_for_heads(self, *states: Tensor) -> list[Tensor]:
        """Queries, keys, values: [B, H, n, D] -> [B, H / P, N, D] each, in the order of the sequence."""
        parts = [z_BHnD.unflatten(1, (self.group.size, -1)).transpose(0, 1) for z_BHnD in states]
        from_ranks = self.group.all_to_all(torch.cat(parts, dim=2))
        joined_BHND = from_ranks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.seq_len]
        return [*joined_BHND.split([part.shape[2] for part in parts], dim=1)]

    def _heads_for_tokens(self, out_BNhD: Tensor) -> Tensor:
        """[B, N, H / P, D] -> [B, n, H, D]."""
        size, num_local = self.group.size, len(self.positions)
        padding = size * num_local - out_BNhD.shape[1]
        padded = torch.nn.functional.pad(out_BNhD, (0, 0, 0, 0, 0, padding))
        to_ranks = padded.unflatten(1, (size, num_local)).transpose(0, 1).contiguous()
        from_ranks = self.group.all_to_all(to_ranks)
        return from_ranks.permute(1, 2, 0, 3, 4).flatten(2, 3)


class LayerOfHeads:
    """An attention layer as the mode's function sees it, with the rank's ratio of query to KV heads.

    Not a copy of the module: torch cannot copy one that FSDP2 has sharded.
    """

    def __init__(self, module, num_key_value_groups: int, mode: AttentionMode):
        self._module, self._mode = module, mode
        self.num_key_value_groups = num_key_value_groups

    @property
    def config(self):
        """The model's, with the mode's own implementation: transformers looks up which flash attention to call."""
        config = copy.copy(self._module.config)
        config._attn_implementation = self._mode.registry_key()
        return config

    def __getattr__(self, name: str):
        return getattr(self._module, name)


def legal_degrees(heads: int, kv_heads: int) -> list[int]:
    """Numbers of ranks that divide the query heads, and that divide the KV heads or are a multiple of them."""
    return [p for p in range(1, heads + 1) if heads % p == 0 and (kv_heads % p == 0 or p % kv_heads == 0)]
