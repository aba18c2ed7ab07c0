"""`naive` against the definition by loops, `fill` against `naive`, in outputs and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, naive
from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import gather_tokens
from tests.attention import rule_by_loops

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
    mask = naive.lrsa_mask(k, v, mode.rule())
    for group in range(2):
        kept = {
            token
            for of_chunk in rule_by_loops.kept_positions(k[1, group], v[1, group], SINK, LAG, 0.5)
            for token in of_chunk
        }
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
    idx = mode.rule().select(k, v)
    k_ext, v_ext = (torch.cat([gather_tokens(z, idx), z], dim=2) for z in (k, v))
    mask = KVLayout.of_sequence(mode.rule(), 61).mask(q.device)
    out = fill.sdpa(q, k_ext, v_ext, mask, None)
    torch.testing.assert_close(out, naive.lrsa_attention(q, k, v, mode), rtol=0, atol=1e-10)


def tensors_within(thing) -> list[torch.Tensor]:
    """Tensors in a thing's attributes, lists and dicts, however deep."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    parts = [*parts, *vars(thing).values()] if hasattr(thing, "__dict__") else parts
    return [tensor for part in parts for tensor in tensors_within(part)]


@pytest.mark.parametrize("num_tokens", [516, 1028])
def test_fill_keeps_for_the_backward_its_inputs_and_the_kept_tokens_alone(num_tokens):
    """Once: not the joined keys of the fills, which grow with N squared, nor what ranked the tokens."""
    q, k, v = (torch.randn(1, h, num_tokens, 16, requires_grad=True) for h in (4, 2, 2))
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = fill.lrsa_attention(q, k, v, LRSA(lag_size=32, sink_size=4))
    num_compact = 4 + (num_tokens // 32 - 1) * 16
    compact, indices = 2 * 2 * num_compact * 16 * 4, 2 * num_compact * 8
    assert sum(map(len, storages.values())) == q.nbytes + k.nbytes + v.nbytes + compact + indices
    assert tensors_within(vars(out.grad_fn)) == []


def test_gradients_in_bf16_are_summed_in_float32():
    """The sink is seen by each of 125 fills; summed in bf16, small shares would be lost one after the other."""
    q, k, v = random_qkv(1000, dtype=torch.bfloat16)
    mode = LRSA(lag_size=8, sink_size=4, retention_ratio=0.125)
    exact = [z.detach().float().requires_grad_() for z in (q, k, v)]
    got = with_gradients(fill, q, k, v, mode)
    expected = with_gradients(fill, *exact, mode)
    for low, full in zip(got[2:], expected[2:], strict=True):
        sink = (low[:, :, :4].float() - full[:, :, :4]).norm() / full[:, :, :4].norm()
        assert sink < 0.004, float(sink)


@pytest.mark.parametrize("execution", [naive, fill])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retention_ratio": 0.3},
        {"retention_ratio": 1.0},
        {"v_weight": 0.3},
        {"scorer": "key_norm"},
        {"scorer": "window"},
        {"sink_size": 0},
        {"chunks_per_fill": 3},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_loops(execution, options):
    """`naive` takes its positions from the code it is to check: these loops share no line with either."""
    q, k, v = (z.detach()[:1].requires_grad_() for z in random_qkv(45))
    mode = LRSA(**{"lag_size": LAG, "sink_size": SINK, **options})
    got = with_gradients(execution, q, k, v, mode)
    rule = mode.retention_ratio, mode.v_weight, mode.scorer
    out = rule_by_loops.attention(q[0], k[0], v[0], mode.sink_size, LAG, *rule, scale=16**-0.5)[None]
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = out, *torch.autograd.grad(out, (q, k, v), weights)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("chunks_per_fill", "calls"), [(1, 8), (2, 4), (3, 3), (100, 1)])
def test_a_call_takes_as_many_chunks_as_it_may(chunks_per_fill, calls, monkeypatch):
    """The first chunk's takes the sink too."""
    lengths = []

    def counted(q, *arguments, **options):
        lengths.append(q.shape[2])
        return scaled_dot_product_attention(q, *arguments, **options)

    monkeypatch.setattr(fill, "scaled_dot_product_attention", counted)
    q, k, v = random_qkv(SINK + 7 * LAG + 3)
    fill.lrsa_attention(q, k, v, LRSA(lag_size=LAG, sink_size=SINK, chunks_per_fill=chunks_per_fill))
    assert len(lengths) == calls
    assert sum(lengths) == q.shape[2]
