"""The rule against its equations, by hand and by loops."""

import math

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention.lagkv import score, select
from lrsa_lightning.attention.rule import LagRule, highest, kept_per_chunk
from tests.attention.rule_by_loops import kept_positions, score_of_chunk

SINK, LAG = 2, 4


def test_score_of_two_tokens_by_hand():
    # Chunk 0: tokens (0, 1) and (2, 2); chunk 1 spans 0..2 and 0..4.
    k = torch.tensor([[0.0, 1.0], [2.0, 2.0], [0.0, 0.0], [2.0, 4.0]])[None, None]
    # Normalised: (0, .25) and (1, .5): std .25 / sqrt 2 and .5 / sqrt 2.
    first, second = math.exp(0.25 / math.sqrt(2)), math.exp(0.5 / math.sqrt(2))
    expected = torch.tensor([first, second]) / (first + second)
    torch.testing.assert_close(score(k, k, 2, 0)[0, 0, 0], 2 * expected)
    torch.testing.assert_close(score(k, k, 2, 0, v_weight=0.5)[0, 0, 0], 1.5 * expected)


def test_score_equals_the_equations():
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, SINK + 4 * LAG + 3, 6), torch.randn(2, 3, SINK + 4 * LAG + 3, 6)
    got = score(k, v, LAG, SINK, v_weight=0.7)
    assert got.shape == (2, 3, 3, LAG)
    for chunk in range(3):
        start = SINK + chunk * LAG
        here, following = slice(start, start + LAG), slice(start + LAG, start + 2 * LAG)
        of_k = score_of_chunk(k[1, 2, here].tolist(), k[1, 2, following].tolist())
        of_v = score_of_chunk(v[1, 2, here].tolist(), v[1, 2, following].tolist())
        expected = torch.tensor([a + 0.7 * b for a, b in zip(of_k, of_v, strict=True)])
        torch.testing.assert_close(got[1, 2, chunk], expected, rtol=1e-4, atol=1e-6)


def test_channels_without_range_count_as_zero():
    k = torch.randn(1, 1, 2 * LAG, 5)
    k[..., LAG:, 1] = 7.0
    zeroed = k.clone()
    zeroed[..., :, 1] = 0.0
    torch.testing.assert_close(score(k, k, LAG, 0), score(zeroed, zeroed, LAG, 0))


@pytest.mark.parametrize(
    "fill",
    [0.0, 3.0, 3e38, -3e38, 1e-42],
    ids=["zero", "constant", "huge", "minus huge", "denormal"],
)
def test_no_nan_on_constant_input(fill):
    k = torch.full((1, 2, 3 * LAG, 8), fill)
    assert score(k, k, LAG, 0).isfinite().all()


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30, 3e38])
def test_no_nan_on_tiny_ranges_and_huge_values(scale):
    torch.manual_seed(0)
    k = (torch.rand(1, 2, 3 * LAG, 8) * 2 - 1) * scale
    k[..., 0, :] = 3e38
    assert score(k, k, LAG, 0).isfinite().all()


def test_scores_are_float32_under_autocast_and_for_bf16_keys():
    k = torch.randn(1, 2, 3 * LAG, 8).bfloat16()
    expected = score(k.float(), k.float(), LAG, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = score(k, k, LAG, 0)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_scores_do_not_follow_the_default_dtype():
    """Lightning's bf16-true makes bf16 the default."""
    k = torch.randn(1, 2, 3 * LAG, 8)
    expected = score(k, k, LAG, 0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = score(k, k, LAG, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)


def test_ties_go_to_the_lower_position():
    scores = torch.tensor([[[[1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 1.0], [2.0] * 8]]])
    assert highest(scores, 5).tolist() == [[[0, 1, 2, 3, 5, 8, 9, 10, 11, 12]]]


@pytest.mark.parametrize("num_tokens", range(1, SINK + 4 * LAG + 2))
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25, 0.0])
def test_select_size_order_and_sink(num_tokens, ratio):
    k = torch.randn(2, 2, num_tokens, 4)
    idx = select(k, k, LAG, SINK, ratio)
    complete = max(0, (num_tokens - SINK) // LAG)
    kept = int(ratio * LAG)
    assert idx.dtype == torch.int64
    assert idx.shape == (2, 2, min(SINK, num_tokens) + max(complete - 1, 0) * kept)
    assert torch.equal(idx[0, 0, :SINK], torch.arange(min(SINK, num_tokens)))
    assert (idx.diff(dim=-1) > 0).all()
    if complete > 1 and kept:
        chunk_of_kept = (idx[..., SINK:] - SINK) // LAG
        assert torch.equal(chunk_of_kept, torch.arange(complete - 1).repeat_interleave(kept).expand_as(chunk_of_kept))


def test_selection_depends_on_no_other_row():
    torch.manual_seed(0)
    k, v = torch.randn(3, 2, 5 * LAG, 8), torch.randn(3, 2, 5 * LAG, 8)
    alone = select(k[1:2], v[1:2], LAG, SINK, 0.5)
    assert torch.equal(select(k, v, LAG, SINK, 0.5)[1:2], alone)


@pytest.mark.parametrize("num_tokens", range(1, 40))
def test_chunk_arithmetic(num_tokens):
    rule = LagRule(sink_size=3, lag_size=5, kept=2)
    complete = max(0, (num_tokens - 3) // 5)
    assert rule.complete_chunks(num_tokens) == complete
    if complete >= 2:
        assert rule.stored_len(num_tokens) == 3 + (complete - 1) * 2 + 5 + (num_tokens - 3 - complete * 5)
    else:
        assert rule.stored_len(num_tokens) == num_tokens


@pytest.mark.parametrize(
    ("lag", "ratio", "kept"), [(15, 0.5, 7), (16, 0.5, 8), (10, 0.25, 2), (7, 0.99, 6), (3, 1.0, 3)]
)
def test_a_part_of_a_token_is_not_kept(lag, ratio, kept):
    assert kept_per_chunk(lag, ratio) == kept
    assert LRSA(lag_size=lag, retention_ratio=ratio).rule().kept == kept
    k = torch.randn(1, 1, 3 * lag, 4)
    assert select(k, k, lag, 0, ratio).shape[-1] == 2 * kept


@pytest.mark.parametrize("sink", [0, 3])
@pytest.mark.parametrize("num_tokens", [15, 16, 19, 40])
def test_selected_positions_are_those_of_the_loops(sink, num_tokens):
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, num_tokens, 6), torch.randn(2, 3, num_tokens, 6)
    got = select(k, v, 8, sink, 0.4, v_weight=0.7)
    for row in range(2):
        for head in range(3):
            kept = kept_positions(k[row, head], v[row, head], sink, 8, 0.4, 0.7)
            assert got[row, head].tolist() == [*range(sink), *(p for chunk in kept for p in chunk)]


def test_scores_carry_no_gradient():
    k = torch.randn(1, 2, 3 * LAG, 8, requires_grad=True)
    assert not score(k, k, LAG, 0).requires_grad
