"""[compact ; raw]: where the keys are that consecutive queries attend to, and which of them each query sees.

The mask over these keys depends on no data. One layout serves all layers, heads, samples and steps. A query sees a
prefix of the compact keys and an interval of the raw keys; masks and tile lists follow from these intervals.

Shape suffixes: B batch, G KV heads, C compact keys, R raw keys, E all keys of the layout, D head size, Q queries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import floordiv
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.rule import LagRule

TILE = 128
# Enough at 64K tokens. In longer sequences the last tiles weigh less, and duplicated keys take memory.
_MAX_DUPLICATES = 16384


@dataclass(frozen=True)
class KVLayout:
    """The keys [duplicates ; compact ; padding ; raw] of Q consecutive queries. Positions are tokens of the sequence.

    The last raw key is the last query's own. Kernels that work by tiles have two wishes:

    - Padding, which no query sees, moves the raw keys to the start of a tile. The diagonal then crosses as few tiles as
      it can, and a length of complete tiles stays one.
    - The first compact keys come twice, and the later half of the queries reads the duplicates. A kernel that walks all
      queries of a key tile in one block finishes with the tiles that every query sees. To halve those is worth the
      additional keys.

    Attributes:
        rule: the sizes of the rule.
        num_compact: C, keys of the sink and M kept tokens of each compressed chunk, in order.
        num_queries: Q.
        first_query: position of the first query.
        first_raw: position of the first raw key.
        tile: the raw keys begin at a multiple of it.
        num_duplicates: leading keys that repeat the first compact ones, complete tiles.
    """

    rule: LagRule
    num_compact: int
    num_queries: int
    first_query: int = 0
    first_raw: int = 0
    tile: int = 1
    num_duplicates: int = 0

    @classmethod
    def of_sequence(cls, rule: LagRule, num_tokens: int, tile: int = 1) -> "KVLayout":
        """The training forward's: every token is a query, and a raw key."""
        return cls(rule, rule.compact_len(num_tokens), num_tokens, tile=tile)

    @classmethod
    def after_sink(cls, rule: LagRule, num_tokens: int, tile: int = 1) -> "KVLayout":
        """The same without the sink's queries, which see the sink alone: chunks of complete tiles then fill tiles."""
        sink = rule.sink_size
        return cls(rule, rule.compact_len(num_tokens), num_tokens - sink, sink, sink, tile)

    @property
    def end(self) -> int:
        """The position after the last query: tokens of the sequence so far."""
        return self.first_query + self.num_queries

    @property
    def raw_offset(self) -> int:
        """Index of the first raw key."""
        return self.num_duplicates + -(-self.num_compact // self.tile) * self.tile

    @property
    def num_keys(self) -> int:
        """E: duplicates, compact keys, padding and raw keys."""
        return self.raw_offset + self.end - self.first_raw

    @property
    def diagonal(self) -> int:
        """The own key of query i is key i + diagonal."""
        return self.raw_offset + self.first_query - self.first_raw

    def lay_out(self, compact_BGCD: Tensor, raw_BGRD: Tensor) -> Tensor:
        """The keys, or the values, in this order: [B, G, E, D]."""
        padding = self.raw_offset - self.num_duplicates - self.num_compact
        duplicates = compact_BGCD[:, :, : self.num_duplicates]
        parts = duplicates, compact_BGCD, compact_BGCD.new_zeros(padding, 1), raw_BGRD
        return torch.cat([z.expand(*raw_BGRD.shape[:2], -1, raw_BGRD.shape[-1]) for z in parts], dim=2)

    def join(self, compact_BGCD: Tensor, raw_BGRD: Tensor) -> Tensor:
        """`lay_out` without a copy where one part is empty."""
        parts = [z for z in (compact_BGCD, raw_BGRD) if z.shape[2]]
        return parts[0] if len(parts) == 1 else self.lay_out(compact_BGCD, raw_BGRD)

    def intervals(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """End of the compact keys that each query sees, and its first raw key; both are indices of keys."""
        bounds = visible_bounds(self.rule, query + self.first_query, torch.minimum, torch.Tensor.clamp_min)
        return self.num_duplicates + bounds[0], self.diagonal - self.first_query + bounds[1]

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the ``query``-th query sees the ``key``-th key; the two broadcast. Duplicates count as seen."""
        compact_end, raw_begin = self.intervals(query)
        return (key < compact_end) | ((key >= raw_begin) & (key <= query + self.diagonal))

    @property
    def is_lower_right_causal(self) -> bool:
        """Whether the rule hides nothing from any query but the keys after its own.

        The first query sees the fewest compact keys, the last one the fewest raw keys.
        """
        first, last = self.rule.chunk_of(self.first_query), self.rule.chunk_of(self.end - 1)
        sees_raw = self.first_raw == self.end or self.rule.raw_visible(last) <= self.first_raw
        return sees_raw and self.rule.compact_visible(first) >= self.num_compact

    def mask(self, device: torch.device) -> Tensor | None:
        """bool [Q, E], True where the query sees the key; None where a single query sees them all."""
        if not self.is_lower_right_causal:
            return self.visible(
                torch.arange(self.num_queries, device=device).unsqueeze(-1), torch.arange(self.num_keys, device=device)
            )
        if self.num_queries == 1:
            return None
        return torch.ones(self.num_queries, self.num_keys, dtype=torch.bool, device=device).tril(self.diagonal)

    def fills(self, chunks_per_fill: int) -> "Iterator[Fill]":
        """Cuts the queries at every ``chunks_per_fill``-th chunk boundary, and the keys to what a cut needs."""
        rule, start = self.rule, self.first_query
        while start < self.end:
            first_chunk = rule.chunk_of(start)
            stop = min(self.end, rule.sink_size + (first_chunk + chunks_per_fill) * rule.lag_size)
            num_compact = min(rule.compact_visible(rule.chunk_of(stop - 1)), self.num_compact)
            first_raw = min(max(rule.raw_visible(first_chunk), self.first_raw), stop)
            queries = slice(start - self.first_query, stop - self.first_query)
            raw = slice(first_raw - self.first_raw, stop - self.first_raw)
            yield Fill(KVLayout(rule, num_compact, stop - start, start, first_raw), queries, raw)
            start = stop

    def with_duplicates(self) -> "KVLayout":
        """The same layout with a duplicate of each compact tile that the later half of the queries sees completely."""
        compact_end, _ = visible_bounds(self.rule, self._later_half + self.first_query, min, max)
        num_duplicates = min(compact_end, _MAX_DUPLICATES)
        return replace(self, num_duplicates=num_duplicates // TILE * TILE)

    @property
    def _later_half(self) -> int:
        """First query that reads the duplicates."""
        return self.num_queries // 2 // TILE * TILE

    def tiles(self, query_tile: int = TILE, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The tiles that hold a visible element, and those that hold nothing else: bool [query tiles, key tiles].

        Computed on the device that needs them: a copy would wait for it, and sorts of long lists take the host long.

        Both intervals only move forward from query to query. So the first and the last query of a tile decide on it.
        """
        first = torch.arange(0, self.num_queries, query_tile, device=device).unsqueeze(-1)
        last = (first + query_tile - 1).clamp(max=self.num_queries - 1)
        least, earliest = self.intervals(first)
        most, latest = self.intervals(last)

        start = torch.arange(0, self.num_keys, TILE, device=device)
        end = (start + TILE).clamp(max=self.num_keys)
        raw = start >= self.raw_offset
        sees_raw = torch.maximum(start, earliest) < torch.minimum(end, last + self.diagonal + 1)
        all_raw = (start >= latest) & (end <= first + self.diagonal + 1)
        seen = torch.where(raw, sees_raw, start < most)
        # Keys beyond the end must be masked; what queries beyond it see is never written.
        complete = start + TILE <= self.num_keys
        duplicate = start < self.num_duplicates
        has_duplicate = (start >= self.num_duplicates) & (start < 2 * self.num_duplicates)
        seen &= torch.where(first < self._later_half, ~duplicate, ~has_duplicate)
        return seen, seen & complete & torch.where(raw, all_raw, end <= least)

    def tile_list_bytes(self, query_tile: int = TILE) -> int:
        """Bytes of two lists of tiles, as `tile_lists` makes them of what `tiles` returns."""
        return 8 * -(-self.num_queries // query_tile) * -(-self.num_keys // TILE)


@dataclass(frozen=True)
class Fill:
    """Queries that share an attention call, and the keys that they need.

    Attributes:
        layout: of the fill.
        queries: its queries among those at hand.
        raw: its raw keys among those at hand.
    """

    layout: KVLayout
    queries: slice
    raw: slice

    def join(self, compact: Tensor, raw: Tensor) -> Tensor:
        """The keys, or the values, of this fill, in order."""
        return torch.cat([compact[:, :, : self.layout.num_compact], raw[:, :, self.raw]], dim=2)

    def add_gradient(self, joined: Tensor, compact: Tensor, raw: Tensor) -> None:
        """Adds the gradient of the joined keys, or values, to the gradients of their parts."""
        compact[:, :, : self.layout.num_compact] += joined[:, :, : self.layout.num_compact]
        raw[:, :, self.raw] += joined[:, :, self.layout.num_compact :]


def visible_bounds(
    sizes: Any, position: Any, smaller: Callable, larger: Callable, quotient: Callable = floordiv
) -> tuple[Any, Any]:
    """Who sees whom: a query sees so many compact keys, and from a position on the raw ones up to itself.

    The arithmetic serves tensors and the integers of a kernel alike.

    Args:
        sizes: sink_size, lag_size and kept, as a `LagRule` has them.
        position: of the query.
        smaller: the smaller one of two such numbers.
        larger: the larger one of such a number and an int.
        quotient: of a distance, which is negative in the sink, and lag_size, rounded to any whole number below 1 there.

    Returns:
        number of visible compact keys, and position of the first visible raw key.
    """
    sink_size = sizes.sink_size
    compressed = larger(quotient(position - sink_size, sizes.lag_size) - 1, 0)
    # A query in the sink sees the sink up to itself. All others have more past tokens than compact keys.
    return smaller(position + 1, compressed * sizes.kept + sink_size), compressed * sizes.lag_size + sink_size


def causal_pairs(num_tokens: int) -> int:
    """Query-key pairs of full causal attention."""
    return num_tokens * (num_tokens + 1) // 2


@lru_cache(maxsize=4096)
def visible_pairs(rule: LagRule, num_tokens: int) -> int:
    """Query-key pairs that a layer attends over in a sequence under the rule."""
    layout, query = KVLayout.of_sequence(rule, num_tokens), torch.arange(num_tokens, device="cpu")
    compact_end, raw_begin = layout.intervals(query)
    return int((compact_end + (query + layout.diagonal + 1 - raw_begin).clamp(min=0)).sum())


def tile_lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of ``tiles`` the number of chosen columns, int32 [1, 1, R], and their indices first, [1, 1, R, C]."""
    order = tiles.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return tiles.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()
