"""The LRSA mask over [compact ; raw] as lists of tiles, built from arithmetic alone.

It depends on no data: one mask serves all layers, heads, samples and steps. `create_block_mask` would evaluate
every element (128 GiB at 128K tokens); here the tiles follow from the rule's intervals in milliseconds.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lrsa_lightning.attention.lagkv import Chunking

TILE = 128
# Enough at 64K tokens; the longer a sequence, the less its last tiles weigh, and twins take memory.
_MOST_TWINS = 16384


@dataclass(frozen=True)
class StaticMask:
    """Who sees whom when the last queries of a sequence meet the keys [twins ; compact ; padding ; raw].

    The padding, which nobody sees, moves the raw keys to the start of a tile: the diagonal then crosses as few
    tiles as it can, and a length of whole tiles stays one. Twins are the first compact keys once more, for the
    later half of the queries: a kernel that walks all queries of a key tile in one block ends with the tiles that
    every query sees, and halving those is worth more than the few keys.

    Attributes:
        chunking: the rule's sizes.
        num_compact: C, keys in front: the sink, then M kept tokens of each compressed chunk.
        num_queries: Q, the newest tokens.
        first_query: position of the first of them.
        first_raw: position of the first raw key; the last one is the last query's.
        num_twins: keys in front that repeat the first compact ones, whole tiles.
    """

    chunking: Chunking
    num_compact: int
    num_queries: int
    first_query: int = 0
    first_raw: int = 0
    num_twins: int = 0

    @classmethod
    def of_sequence(cls, num_tokens: int, chunking: Chunking) -> "StaticMask":
        """The training forward's: every token is a query, and a raw key."""
        return cls(chunking, chunking.compact_len(num_tokens), num_tokens)

    @classmethod
    def behind_sink(cls, num_tokens: int, chunking: Chunking) -> "StaticMask":
        """The same without the sink's own queries, which see nothing else: chunks of whole tiles then lie on tiles."""
        sink = chunking.sink_size
        return cls(chunking, chunking.compact_len(num_tokens), num_tokens - sink, sink, sink)

    def with_twins(self) -> "StaticMask":
        """The same mask with a twin of each compact tile that the later half of the queries sees whole."""
        compact_end, _ = self._intervals(torch.tensor(self._later_half))
        num_twins = min(int(compact_end) - self.num_twins, _MOST_TWINS)
        return replace(self, num_twins=num_twins // TILE * TILE)

    @property
    def _later_half(self) -> int:
        """First query that reads the twins."""
        return self.num_queries // 2 // TILE * TILE

    @property
    def raw_offset(self) -> int:
        """Where the raw keys begin: behind twins and compact keys, rounded up to whole tiles."""
        return self.num_twins + -(-self.num_compact // TILE) * TILE

    @property
    def num_keys(self) -> int:
        """Twins, compact keys, padding and raw keys."""
        return self.raw_offset + self.first_query + self.num_queries - self.first_raw

    def lay_out(self, compact_BGCD: Tensor, raw_BGRD: Tensor) -> Tensor:
        """The keys, or the values, in the mask's order: [B, G, E, D]."""
        padding = self.raw_offset - self.num_twins - self.num_compact
        parts = compact_BGCD[:, :, : self.num_twins], compact_BGCD, compact_BGCD.new_zeros(padding, 1), raw_BGRD
        return torch.cat([z.expand(*raw_BGRD.shape[:2], -1, raw_BGRD.shape[-1]) for z in parts], dim=2)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the ``query``-th query sees the ``key``-th key; the two broadcast."""
        compact_end, raw_begin = self._intervals(query)
        return (key < compact_end) | ((key >= raw_begin) & (key <= query + self.diagonal))

    @property
    def diagonal(self) -> int:
        """The own key of query i is key i + diagonal."""
        return self.raw_offset + self.first_query - self.first_raw

    def _intervals(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """End of the compact keys each query sees, and its first raw one."""
        sink, position = self.chunking.sink_size, query + self.first_query
        compressed = ((position - sink).div(self.chunking.lag_size, rounding_mode="floor") - 1).clamp(min=0)
        # The kept tokens of a query's past are fewer than the tokens of it: the smaller one matters in the sink alone.
        compact_end = torch.minimum(position + 1, sink + self.chunking.kept * compressed)
        raw_begin = self.diagonal - self.first_query + sink + self.chunking.lag_size * compressed
        return self.num_twins + compact_end, raw_begin

    def tiles(self, query_tile: int = TILE) -> tuple[Tensor, Tensor]:
        """Which tiles hold a visible element, and which nothing else: bool [query tiles, key tiles].

        A query sees a prefix of the compact keys and an interval of the raw ones, and both only move forward from
        query to query, so a tile is decided by its first and its last query.
        """
        first = torch.arange(0, self.num_queries, query_tile).unsqueeze(-1)
        last = (first + query_tile - 1).clamp(max=self.num_queries - 1)
        least, earliest = self._intervals(first)
        most, latest = self._intervals(last)

        start = torch.arange(0, self.num_keys, TILE)
        end = (start + TILE).clamp(max=self.num_keys)
        raw = start >= self.raw_offset
        sees_raw = torch.maximum(start, earliest) < torch.minimum(end, last + self.diagonal + 1)
        all_raw = (start >= latest) & (end <= first + self.diagonal + 1)
        seen = torch.where(raw, sees_raw, start < most)
        # Keys beyond the end must be masked; what queries beyond it see is never written.
        whole = start + TILE <= self.num_keys
        twin = start < self.num_twins
        has_twin = (start >= self.num_twins) & (start < 2 * self.num_twins)
        seen &= torch.where(first < self._later_half, ~twin, ~has_twin)
        return seen, seen & whole & torch.where(raw, all_raw, end <= least)


@lru_cache(maxsize=8)
def block_mask(mask: StaticMask, device: torch.device):
    """The mask as FlexAttention's BlockMask."""
    from torch.nn.attention.flex_attention import BlockMask  # its import takes a second

    seen, full = mask.tiles()
    return BlockMask.from_kv_blocks(
        *(t.to(device) for t in (*tile_lists(seen & ~full), *tile_lists(full))),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=lambda b, h, query, key: mask.visible(query, key),
        seq_lengths=(mask.num_queries, mask.num_keys),
    )


def tile_lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of ``tiles`` the number of chosen columns, int32 [1, 1, R], and their indices first, [1, 1, R, C]."""
    order = tiles.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return tiles.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()


def causal_over_sparse_tiles(num_tokens: int, chunking: Chunking) -> float:
    """Speed-up over dense causal attention that the tiles allow: tiles of the causal mask over those of this one."""
    seen, _ = StaticMask.of_sequence(num_tokens, chunking).tiles()
    rows = seen.shape[0]
    return rows * (rows + 1) / 2 / int(seen.sum())
