"""`naive` against the definition by loops, `fill` against `naive`, in outputs and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.lagkv import gather_tokens

SINK, LAG = 4, 8
# Around every boundary of sink and chunks, and a longer one.
LENGTHS = [1, 3, 4, 5, 11, 12, 13, 19, 20, 21, 28, 29, 61]


def random_qkv(num_tokens: int, heads: int = 4, groups: int = 2, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, h, num_tokens, 16, dtype=dtype, generator=generator).requires_grad_()
        for h in (heads, groups, groups)
    ]


def with_gradients(execution, q, k, v, mode):
    out = execution.lrsa_attention(q, k, v, mode)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, *torch.autograd.grad(out, (q, k, v), weights)


@pytest.mark.parametrize("num_tokens", [3, 13, 21, 37])
def test_naive_mask_is_the_definition(num_tokens):
    _, k, v = random_qkv(num_tokens)
    mode = LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=0.5)
    idx = mode.select(k, v)
    mask = naive.lrsa_mask(idx, num_tokens, SINK, LAG)
    for group in range(2):
        kept = set(idx[1, group].tolist())
        for i in range(num_tokens):
            chunk = (i - SINK) // LAG
            for j in range(num_tokens):
                near = (j - SINK) // LAG in (chunk - 1, chunk)
                assert mask[1, group, i, j] == (j <= i and (j < SINK or near or j in kept)), (group, i, j)


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("chunks_per_fill", [1, 2, 3])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (3, 1), (6, 1)])
def test_fill_equals_naive(num_tokens, ratio, chunks_per_fill, heads, groups):
    q, k, v = random_qkv(num_tokens, heads, groups)
    mode = LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=ratio, chunks_per_fill=chunks_per_fill)
    for got, expected in zip(with_gradients(fill, q, k, v, mode), with_gradients(naive, q, k, v, mode), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scorer", ["lagkv", "random", "key_norm", "window"])
def test_fill_equals_naive_under_every_scorer(scorer):
    q, k, v = random_qkv(61)
    mode = LRSA(lag_size=LAG, sink_size=SINK, v_weight=0.3, scorer=scorer)
    for got, expected in zip(with_gradients(fill, q, k, v, mode), with_gradients(naive, q, k, v, mode), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tokens", [SINK + 6 * LAG + 3, 61])
def test_float32_fill_equals_float64_naive(num_tokens):
    q, k, v = random_qkv(num_tokens, dtype=torch.float32)
    mode = LRSA(lag_size=LAG, sink_size=SINK, chunks_per_fill=2)
    exact = [z.detach().double().requires_grad_() for z in (q, k, v)]
    for got, expected in zip(with_gradients(fill, q, k, v, mode), with_gradients(naive, *exact, mode), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("execution", [naive, fill])
@pytest.mark.parametrize("num_tokens", [5, 37])
def test_full_retention_is_causal_attention(execution, num_tokens):
    q, k, v = random_qkv(num_tokens)
    out = execution.lrsa_attention(q, k, v, LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=1.0))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_short_rows_are_causal_even_where_nothing_is_kept():
    q, k, v = random_qkv(SINK + 2 * LAG)
    out = fill.lrsa_attention(q, k, v, LRSA(lag_size=LAG, sink_size=SINK, scorer="window"))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_compression_changes_the_output():
    q, k, v = random_qkv(61)
    outputs = [
        naive.lrsa_attention(q, k, v, LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=ratio)) for ratio in (1.0, 0.5)
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


def test_scale_and_low_precision():
    q, k, v = random_qkv(37, dtype=torch.bfloat16)
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    expected = naive.lrsa_attention(q, k, v, mode, 0.3)
    torch.testing.assert_close(fill.lrsa_attention(q, k, v, mode, 0.3), expected, rtol=2e-2, atol=2e-2)
    assert (fill.lrsa_attention(q, k, v, mode) - expected).abs().max() > 0.1


def test_skipped_layers_are_causal():
    q, k, v = random_qkv(61)
    mode = LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=0.25, skip_layers=[1])
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    for execution in (naive, fill):
        torch.testing.assert_close(execution.lrsa_attention(q, k, v, mode, layer_idx=1), expected)
        assert (execution.lrsa_attention(q, k, v, mode, layer_idx=0) - expected).abs().max() > 1e-2


def test_static_mask_on_compact_and_raw_keys_equals_naive():
    """The mask that depends on no data, over the whole sequence at once, as one block mask would run it."""
    q, k, v = random_qkv(61)
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    idx = mode.select(k, v)
    k_ext, v_ext = (torch.cat([gather_tokens(z, idx), z], dim=2) for z in (k, v))
    mask = fill.static_mask(0, 61, idx.shape[-1], 0, mode.chunking(), q.device)
    out = fill.sdpa(q, k_ext, v_ext, mask, None)
    torch.testing.assert_close(out, naive.lrsa_attention(q, k, v, mode), rtol=0, atol=1e-10)


def saved_bytes(num_tokens):
    """Bytes that a forward pass of `fill` keeps for its backward."""
    q, k, v = (torch.randn(1, h, num_tokens, 16, requires_grad=True) for h in (4, 2, 2))
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = fill.lrsa_attention(q, k, v, LRSA(lag_size=32, sink_size=4))
    assert out.requires_grad
    return sum(kept.values())


def test_what_fill_keeps_for_the_backward_grows_with_the_length_alone():
    assert saved_bytes(4096) < 2.1 * saved_bytes(2048)
