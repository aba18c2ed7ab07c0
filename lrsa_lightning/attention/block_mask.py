"""The LRSA mask over [compact ; raw] as a FlexAttention BlockMask, built from arithmetic alone.

It depends on no data: one mask serves all layers, heads, samples and steps. `create_block_mask` would evaluate
every element (128 GiB at 128K tokens); here the tiles follow from the rule's intervals in milliseconds.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lrsa_lightning.attention.lagkv import Chunking

TILE = 128


@lru_cache(maxsize=8)
def lrsa_block_mask(num_tokens: int, chunking: Chunking, device: torch.device) -> BlockMask:
    """The mask of ``num_tokens`` queries over their compact keys, then all raw ones.

    Args:
        num_tokens: N; at least one chunk is compressed.
        chunking: the rule's sizes.
        device: of the queries.
    """
    num_compact = chunking.compact_len(num_tokens)
    seen, full = _tiles(num_tokens, num_compact, chunking)
    partial = seen & ~full
    return BlockMask.from_kv_blocks(
        *(t.to(device) for t in (*_lists(partial), *_lists(full))),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=_mask_mod(num_compact, chunking),
        seq_lengths=(num_tokens, num_compact + num_tokens),
    )


def causal_over_sparse_tiles(num_tokens: int, chunking: Chunking) -> float:
    """Speed-up over dense causal attention that the tiles allow: tiles of the causal mask over those of this one."""
    seen, _ = _tiles(num_tokens, chunking.compact_len(num_tokens), chunking)
    rows = seen.shape[0]
    return rows * (rows + 1) / 2 / int(seen.sum())


def _mask_mod(num_compact: int, chunking: Chunking):
    """The mask element by element: comparisons joined by & and |, all that the FLASH backend takes."""
    sink, lag, kept = chunking.sink_size, chunking.lag_size, chunking.kept

    def mask_mod(b, h, q, kv):
        lag_chunk = (q - sink) // lag - 1
        sees_sink = (kv < sink) & (kv <= q)
        sees_kept = (kv >= sink) & (kv < sink + kept * lag_chunk)
        sees_raw = (
            (kv >= num_compact + sink) & (kv - num_compact <= q) & ((kv - num_compact - sink) // lag >= lag_chunk)
        )
        return sees_sink | sees_kept | sees_raw

    return mask_mod


def _tiles(num_tokens: int, num_compact: int, chunking: Chunking) -> tuple[Tensor, Tensor]:
    """Which tiles hold a visible element, and which nothing else: bool [query tiles, key tiles].

    A query sees a prefix of the compact keys and an interval of the raw ones, and both only move forward from query
    to query, so a tile is decided by its first and its last query.
    """
    num_keys = num_compact + num_tokens
    first_query = torch.arange(0, num_tokens, TILE).unsqueeze(-1)
    last_query = (first_query + TILE - 1).clamp(max=num_tokens - 1)
    least, earliest = _intervals(first_query, chunking)
    most, latest = _intervals(last_query, chunking)

    start = torch.arange(0, num_keys, TILE)
    end = (start + TILE).clamp(max=num_keys)
    compact_end = end.clamp(max=num_compact)
    raw_start, raw_end = (start - num_compact).clamp(min=0), end - num_compact
    has_compact, has_raw = start < compact_end, raw_end > 0

    sees_compact = has_compact & (start < most)
    sees_raw = has_raw & (torch.maximum(raw_start, earliest) < torch.minimum(raw_end, last_query + 1))
    all_compact = ~has_compact | (compact_end <= least)
    all_raw = ~has_raw | ((raw_start >= latest) & (raw_end <= first_query + 1))
    # A ragged last tile is never full: the elements beyond the end must be masked.
    whole = (start + TILE <= num_keys) & (first_query + TILE <= num_tokens)
    seen = sees_compact | sees_raw
    return seen, seen & all_compact & all_raw & whole


def _intervals(query: Tensor, chunking: Chunking) -> tuple[Tensor, Tensor]:
    """Number of compact keys each query sees, and the position of its first raw one."""
    earlier = ((query - chunking.sink_size).div(chunking.lag_size, rounding_mode="floor") - 1).clamp(min=0)
    compact = torch.where(query < chunking.sink_size, query + 1, chunking.sink_size + chunking.kept * earlier)
    return compact, chunking.sink_size + chunking.lag_size * earlier


def _lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Per query tile the number of chosen key tiles and their indices first, as BlockMask wants them."""
    order = tiles.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return tiles.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()
