"""The layout against the definition of its layout, element by element, and its attention through SDPA on the CPU."""

from dataclasses import replace

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.flex import block_mask
from lrsa_lightning.attention.layout import TILE, KVLayout, causal_pairs, visible_bounds, visible_pairs
from lrsa_lightning.attention.rule import LagRule, gather_tokens
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


def layout_of(num_tokens, mode):
    return KVLayout.of_sequence(mode.rule(), num_tokens, TILE)


def element_mask(layout):
    """Who sees whom, element by element as the paper says it, with hidden padding: [Q, E]."""
    sink, lag, kept = layout.rule.sink_size, layout.rule.lag_size, layout.rule.kept
    query = torch.arange(layout.first_query, layout.end)[:, None]
    chunk = (query - sink).div(lag, rounding_mode="floor")
    compact, raw = torch.arange(layout.num_compact), torch.arange(layout.first_raw, layout.end)
    sees_sink = (compact < sink) & (compact <= query)
    sees_kept = (compact >= sink) & (compact < sink + kept * (chunk - 1))
    sees_raw = (raw >= sink) & (raw <= query) & ((raw - sink).div(lag, rounding_mode="floor") >= chunk - 1)
    padding = torch.zeros(layout.num_queries, layout.raw_offset - layout.num_compact, dtype=torch.bool)
    return torch.cat([sees_sink | sees_kept, padding, sees_raw], dim=1)


def in_tiles(elements, query_tile=TILE):
    """Whether each tile holds a visible element, and whether nothing else: bool [query tiles, key tiles]."""
    rows, columns = -(-elements.shape[0] // query_tile), -(-elements.shape[1] // TILE)
    missing = rows * query_tile - elements.shape[0], columns * TILE - elements.shape[1]
    # There is no key after the last one. What queries after the last one see does not matter.
    padded = torch.nn.functional.pad(elements, (0, missing[1]))
    seen, full = (
        torch.nn.functional.pad(padded, (0, 0, 0, missing[0]), value=whole)
        .unflatten(1, (columns, TILE))
        .unflatten(0, (rows, query_tile))
        for whole in (False, True)
    )
    return seen.any(dim=3).any(dim=1), full.all(dim=3).all(dim=1)


def places(layout):
    return torch.arange(layout.num_queries)[:, None], torch.arange(layout.num_keys)[None, :]


def a_cache_view(num_tokens, sink, lag, kept, first_query):
    """The layout of queries first_query .. num_tokens - 1 over a cache that earlier tokens have filled."""
    rule = LagRule(sink, lag, kept)
    seen = max(first_query, sink)
    return KVLayout(
        rule, rule.compact_len(num_tokens), num_tokens - first_query, first_query, rule.raw_start(seen), TILE
    )


def a_segment(num_tokens, sink, lag, kept, rank, index):
    """The layout of a segment of one of three ranks; its raw keys begin with the previous chunk."""
    rule = LagRule(sink, lag, kept)
    segment = ContextLayout(num_tokens, rule, 3).of_rank(rank)[index]
    first_raw = max(0, segment.start - lag)
    compact = rule.compact_visible(rule.chunk_of(segment.stop - 1))
    return KVLayout(rule, compact, segment.num_tokens, segment.start, first_raw, TILE)


SEGMENTS = [
    a_segment(4096, 16, 128, 64, 0, 0),
    a_segment(4096, 16, 128, 64, 1, 0),
    a_segment(4096, 16, 128, 64, 2, 0),
    a_segment(4096, 16, 128, 64, 0, 1),
    a_segment(4100, 5, 100, 50, 1, 1),
]
LAYOUTS = [KVLayout.of_sequence(LagRule(sink, lag, int(ratio * lag)), n, TILE) for n, sink, lag, ratio in CASES] + [
    a_cache_view(1000, 16, 100, 25, 0),
    a_cache_view(1500, 200, 64, 32, 700),
    a_cache_view(1500, 5, 300, 150, 1372),
    a_cache_view(900, 5, 128, 0, 517),
    KVLayout.after_sink(LagRule(16, 128, 64), 1500, TILE),
    KVLayout.after_sink(LagRule(200, 256, 64), 2048, TILE),
    *SEGMENTS,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("query_tile", [64, 128])
def test_tiles_and_elements(layout, query_tile):
    elements = element_mask(layout)
    assert torch.equal(layout.visible(*places(layout)), elements)
    for got, expected in zip(layout.tiles(query_tile), in_tiles(elements, query_tile), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("query_tile", [64, 128])
@pytest.mark.parametrize("layout", [KVLayout.of_sequence(LagRule(16, 128, 64), 2048, TILE), *SEGMENTS[1:4]], ids=str)
def test_duplicated_tiles_serve_the_later_half_and_nothing_else_changes(layout, query_tile):
    doubled = layout.with_duplicates()
    duplicates = doubled.num_duplicates // TILE
    assert duplicates > 0
    for plain, tiles in zip(layout.tiles(query_tile), doubled.tiles(query_tile), strict=True):
        assert torch.equal(tiles[:, :duplicates] | tiles[:, duplicates : 2 * duplicates], plain[:, :duplicates])
        assert not torch.any(tiles[:, :duplicates] & tiles[:, duplicates : 2 * duplicates])
        assert torch.equal(tiles[:, 2 * duplicates :], plain[:, duplicates:])
    seen, full = doubled.tiles(query_tile)
    late = torch.arange(0, layout.num_queries, query_tile) >= layout.num_queries // 2 // TILE * TILE
    assert torch.equal(seen[:, :duplicates], late[:, None].expand(-1, duplicates))
    assert torch.equal(full[:, :duplicates], seen[:, :duplicates])
    assert torch.equal(doubled.visible(*places(doubled))[:, doubled.num_duplicates :], layout.visible(*places(layout)))


def test_after_the_sink_chunks_fill_tiles():
    rule = LagRule(16, 256, 128)
    counts = []
    for layout in (KVLayout.of_sequence(rule, 4096, TILE), KVLayout.after_sink(rule, 4096, TILE)):
        seen, full = layout.tiles()
        counts.append((int(seen.sum()), int((seen & ~full).sum())))
    (plain, plain_partial), (after, partial) = counts
    assert after < plain
    # In each query tile: the diagonal, and the end of the compact keys.
    assert partial <= 2 * 4096 // TILE < plain_partial


def test_block_mask_lists_the_tiles():
    layout = KVLayout.of_sequence(LagRule(16, 100, 25), 1000, TILE)
    lists = block_mask(layout, CPU)
    seen, full = layout.tiles()
    for row in range(seen.shape[0]):
        partial_idx = lists.kv_indices[0, 0, row, : lists.kv_num_blocks[0, 0, row]]
        full_idx = lists.full_kv_indices[0, 0, row, : lists.full_kv_num_blocks[0, 0, row]]
        assert full_idx.tolist() == full[row].nonzero().flatten().tolist()
        assert partial_idx.tolist() == (seen & ~full)[row].nonzero().flatten().tolist()
    assert torch.equal(lists.mask_mod(0, 0, *places(layout)), layout.visible(*places(layout)))


def test_attention_under_the_mask_equals_naive():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 700, 16, dtype=torch.float64) for h in (6, 2, 2))
    mode = LRSA(lag_size=64, sink_size=16)
    layout = layout_of(700, mode)
    idx = mode.rule().select(k, v)
    k_ext, v_ext = (layout.lay_out(gather_tokens(z, idx), z) for z in (k, v))
    out = fill.sdpa(q, k_ext, v_ext, layout.visible(*places(layout)), None)
    torch.testing.assert_close(out, naive.lrsa_attention(q, k, v, mode), rtol=0, atol=1e-10)


def test_speed_limit_of_the_tiles():
    """32K tokens, L = 1024, 128x128 tiles: dense causal attention over LRSA, as the design counts it."""
    limits = []
    for ratio in (0.5, 0.25):
        seen, _ = layout_of(32768, LRSA(retention_ratio=ratio)).tiles()
        limits.append(256 * 257 / 2 / int(seen.sum()))
    assert limits == pytest.approx([1.78, 2.97], abs=0.01)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_visible_pairs_are_counted_elements(case):
    num_tokens, sink, lag, ratio = case
    rule = LagRule(sink, lag, int(ratio * lag))
    assert visible_pairs(rule, num_tokens) == int(element_mask(KVLayout.of_sequence(rule, num_tokens)).sum())
    assert visible_pairs(rule.keeping_all(), num_tokens) == causal_pairs(num_tokens)
    assert visible_pairs(rule.without_chunks(), num_tokens) == causal_pairs(num_tokens)


@pytest.mark.parametrize("chunks_per_fill", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_fills_cut_the_same_mask(layout, chunks_per_fill):
    """Every fill shows its queries exactly the elements of the mask, and hides no key that they see."""
    layout = replace(layout, tile=1)
    elements, rows = element_mask(layout), []
    for fill_ in layout.fills(chunks_per_fill):
        mask = fill_.layout.mask(CPU)
        mask = torch.ones(1, fill_.layout.num_keys, dtype=torch.bool) if mask is None else mask
        whole = torch.zeros(mask.shape[0], layout.num_keys, dtype=torch.bool)
        compact = fill_.layout.num_compact
        whole[:, :compact] = mask[:, :compact]
        whole[:, layout.num_compact :][:, fill_.raw] = mask[:, compact:]
        rows.append(whole)
    assert torch.equal(torch.cat(rows), elements)


def test_one_mask_a_shape_is_built():
    layout = layout_of(600, LRSA(lag_size=64))
    assert block_mask(layout, CPU) is block_mask(layout_of(600, LRSA(lag_size=64)), CPU)


@pytest.mark.parametrize("sink_size", [0, 5, 40])
def test_a_shift_takes_the_place_of_the_division_by_a_power_of_two(sink_size):
    """As the kernel of flash-attn-4 computes it, which has no division by a number that it does not know."""
    rule = LagRule(sink_size, 8, 3)
    for position in range(100):
        shifted = visible_bounds(rule, position, min, max, lambda distance, _: distance >> 3)
        assert shifted == visible_bounds(rule, position, min, max)
