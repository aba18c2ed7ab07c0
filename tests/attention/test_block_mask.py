"""The analytic block mask against the elements it stands for, and its attention through SDPA on the CPU."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.block_mask import TILE, StaticMask, block_mask, causal_over_sparse_tiles
from lrsa_lightning.attention.lagkv import Chunking, gather_tokens
from lrsa_lightning.distributed.layout import ContextLayout

CPU = torch.device("cpu")
CASES = [
    # num_tokens, sink, lag, ratio
    (1024, 16, 128, 0.5),
    (1000, 16, 100, 0.25),
    (2048, 0, 256, 1.0),
    (1500, 200, 64, 0.5),
    (900, 5, 300, 0.0),
    (513, 3, 7, 0.9),
]


def static_mask_of(num_tokens, mode):
    return StaticMask.of_sequence(num_tokens, mode.chunking())


def element_mask(mask):
    """The same mask by `fill`, with the padding hidden: [Q, E]."""
    end = mask.first_query + mask.num_queries
    elements = fill.static_mask(mask.first_query, end, mask.num_compact, mask.first_raw, mask.chunking, CPU)
    compact, raw = elements.split([mask.num_compact, end - mask.first_raw], dim=1)
    padding = torch.zeros(mask.num_queries, mask.raw_offset - mask.num_compact, dtype=torch.bool)
    return torch.cat([compact, padding, raw], dim=1)


def in_tiles(elements, query_tile=TILE):
    """Whether each tile holds a visible element, and whether nothing else: bool [query tiles, key tiles]."""
    rows, columns = -(-elements.shape[0] // query_tile), -(-elements.shape[1] // TILE)
    missing = rows * query_tile - elements.shape[0], columns * TILE - elements.shape[1]
    # No key lies behind the last one; of queries behind the last one nobody asks.
    padded = torch.nn.functional.pad(elements, (0, missing[1]))
    seen, full = (
        torch.nn.functional.pad(padded, (0, 0, 0, missing[0]), value=whole)
        .unflatten(1, (columns, TILE))
        .unflatten(0, (rows, query_tile))
        for whole in (False, True)
    )
    return seen.any(dim=3).any(dim=1), full.all(dim=3).all(dim=1)


def places(mask):
    return torch.arange(mask.num_queries)[:, None], torch.arange(mask.num_keys)[None, :]


def a_cache_view(num_tokens, sink, lag, kept, first_query):
    """The mask of queries first_query .. num_tokens - 1 that meet a cache filled by those before them."""
    chunking = Chunking(sink, lag, kept)
    seen = max(first_query, sink)
    return StaticMask(
        chunking, chunking.compact_len(num_tokens), num_tokens - first_query, first_query, chunking.raw_start(seen)
    )


def a_stretch(num_tokens, sink, lag, kept, rank, index):
    """The mask of a stretch that one of three ranks holds; its raw keys begin with the chunk before it."""
    chunking = Chunking(sink, lag, kept)
    segment = ContextLayout(num_tokens, chunking, 3).of_rank(rank)[index]
    first_raw = max(0, segment.start - lag)
    compact = chunking.compact_visible(chunking.chunk_of(segment.stop - 1))
    return StaticMask(chunking, compact, segment.num_tokens, segment.start, first_raw)


STRETCHES = [
    a_stretch(4096, 16, 128, 64, 0, 0),
    a_stretch(4096, 16, 128, 64, 1, 0),
    a_stretch(4096, 16, 128, 64, 2, 0),
    a_stretch(4096, 16, 128, 64, 0, 1),
    a_stretch(4100, 5, 100, 50, 1, 1),
]
MASKS = [StaticMask.of_sequence(n, Chunking(sink, lag, int(ratio * lag))) for n, sink, lag, ratio in CASES] + [
    a_cache_view(1000, 16, 100, 25, 0),
    a_cache_view(1500, 200, 64, 32, 700),
    a_cache_view(1500, 5, 300, 150, 1372),
    a_cache_view(900, 5, 128, 0, 517),
    StaticMask.behind_sink(1500, Chunking(16, 128, 64)),
    StaticMask.behind_sink(2048, Chunking(200, 256, 64)),
    *STRETCHES,
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("query_tile", [64, 128])
def test_tiles_and_elements(mask, query_tile):
    elements = element_mask(mask)
    assert torch.equal(mask.visible(*places(mask)), elements)
    for got, expected in zip(mask.tiles(query_tile), in_tiles(elements, query_tile), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("query_tile", [64, 128])
@pytest.mark.parametrize("mask", [StaticMask.of_sequence(2048, Chunking(16, 128, 64)), *STRETCHES[1:4]], ids=str)
def test_twins_serve_the_later_half_and_nothing_else_changes(mask, query_tile):
    twinned = mask.with_twins()
    twins = twinned.num_twins // TILE
    assert twins > 0
    for plain, tiles in zip(mask.tiles(query_tile), twinned.tiles(query_tile), strict=True):
        assert torch.equal(tiles[:, :twins] | tiles[:, twins : 2 * twins], plain[:, :twins])
        assert not torch.any(tiles[:, :twins] & tiles[:, twins : 2 * twins])
        assert torch.equal(tiles[:, 2 * twins :], plain[:, twins:])
    seen, full = twinned.tiles(query_tile)
    late = torch.arange(0, mask.num_queries, query_tile) >= mask.num_queries // 2 // TILE * TILE
    assert torch.equal(seen[:, :twins], late[:, None].expand(-1, twins))
    assert torch.equal(full[:, :twins], seen[:, :twins])
    assert torch.equal(twinned.visible(*places(twinned))[:, twinned.num_twins :], mask.visible(*places(mask)))


def test_behind_the_sink_chunks_lie_on_tiles():
    chunking = Chunking(16, 256, 128)
    counts = []
    for mask in (StaticMask.of_sequence(4096, chunking), StaticMask.behind_sink(4096, chunking)):
        seen, full = mask.tiles()
        counts.append((int(seen.sum()), int((seen & ~full).sum())))
    (plain, plain_partial), (behind, partial) = counts
    assert behind < plain
    # Of each query tile the diagonal, and the end of the compact keys.
    assert partial <= 2 * 4096 // TILE < plain_partial


def test_block_mask_lists_the_tiles():
    mask = StaticMask.of_sequence(1000, Chunking(16, 100, 25))
    lists = block_mask(mask, CPU)
    seen, full = mask.tiles()
    for row in range(seen.shape[0]):
        partial_idx = lists.kv_indices[0, 0, row, : lists.kv_num_blocks[0, 0, row]]
        full_idx = lists.full_kv_indices[0, 0, row, : lists.full_kv_num_blocks[0, 0, row]]
        assert full_idx.tolist() == full[row].nonzero().flatten().tolist()
        assert partial_idx.tolist() == (seen & ~full)[row].nonzero().flatten().tolist()
    assert torch.equal(lists.mask_mod(0, 0, *places(mask)), mask.visible(*places(mask)))


def test_attention_under_the_mask_equals_naive():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 700, 16, dtype=torch.float64) for h in (6, 2, 2))
    mode = LRSA(lag_size=64, sink_size=16)
    mask = static_mask_of(700, mode)
    idx = mode.select(k, v)
    k_ext, v_ext = (mask.lay_out(gather_tokens(z, idx), z) for z in (k, v))
    out = fill.sdpa(q, k_ext, v_ext, mask.visible(*places(mask)), None)
    torch.testing.assert_close(out, naive.lrsa_attention(q, k, v, mode), rtol=0, atol=1e-10)


def test_speed_limit_of_the_tiles():
    """32K tokens, L = 1024: figures of the issue this implements, counted in 128x128 tiles."""
    limits = [causal_over_sparse_tiles(32768, LRSA(retention_ratio=r).chunking()) for r in (0.5, 0.25)]
    assert limits == pytest.approx([1.78, 2.97], abs=0.01)


def test_one_mask_a_shape_is_built():
    mask = static_mask_of(600, LRSA(lag_size=64))
    assert block_mask(mask, CPU) is block_mask(static_mask_of(600, LRSA(lag_size=64)), CPU)
