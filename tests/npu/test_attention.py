"""Attention on NPUs against `naive` on the CPU, in outputs and gradients."""

import logging

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.attention import execution, fill, naive
from lrsa_lightning.errors import InputError
from tests.conftest import make_model

pytestmark = pytest.mark.npu
SINK, LAG = 4, 8
EXACT = {"rtol": 0, "atol": 2e-5}


def random_qkv(num_tokens: int, heads: int = 4, groups: int = 2, batch: int = 2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, h, num_tokens, 16, generator=generator).requires_grad_() for h in (heads, groups, groups)
    ]


def on_npu(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [z.detach().to("npu").requires_grad_() for z in tensors]


def with_gradients(attention, q, k, v) -> list[torch.Tensor]:
    out = attention(q, k, v)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [z.float().cpu() for z in (out, *torch.autograd.grad(out, (q, k, v), weights))]


def assert_equal(got, expected, **tolerance):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or EXACT))


@pytest.mark.parametrize("num_tokens", [1, 3, 5, 12, 13, 20, 21, 29, 61])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (6, 2), (3, 1)])
def test_fill_equals_naive(num_tokens, ratio, heads, groups):
    mode = LRSA(lag_size=LAG, sink_size=SINK, retention_ratio=ratio)
    q, k, v = random_qkv(num_tokens, heads, groups)
    expected = with_gradients(lambda *z: naive.lrsa_attention(*z, mode), q, k, v)
    assert_equal(with_gradients(lambda *z: fill.lrsa_attention(*z, mode), *on_npu(q, k, v)), expected)


@pytest.mark.parametrize(
    "options", [{"scorer": "window"}, {"chunks_per_fill": 3}, {"sink_size": 0}, {"skip_layers": [0]}]
)
def test_options_of_the_mode(options):
    mode = LRSA(**{"lag_size": LAG, "sink_size": SINK, **options})
    q, k, v = random_qkv(61)
    expected = with_gradients(lambda *z: naive.lrsa_attention(*z, mode, 0.3, layer_idx=0), q, k, v)
    got = with_gradients(lambda *z: fill.lrsa_attention(*z, mode, 0.3, layer_idx=0), *on_npu(q, k, v))
    assert_equal(got, expected)


def test_packed_rows():
    mode, boundaries = LRSA(lag_size=LAG, sink_size=SINK), [[0, 30, 61], [0, 5, 61]]
    q, k, v = random_qkv(61)
    expected = with_gradients(lambda *z: naive.lrsa_attention(*z, mode, cu_seqlens=boundaries), q, k, v)
    got = with_gradients(lambda *z: fill.lrsa_attention(*z, mode, cu_seqlens=boundaries), *on_npu(q, k, v))
    assert_equal(got, expected)


@pytest.mark.parametrize("limit", ["_KEYS_PER_CALL", "_SEQUENCES_PER_CALL"])
def test_as_many_calls_as_the_limits_ask_for(monkeypatch, limit):
    import torch_npu

    from lrsa_lightning.attention import fill_npu

    calls, genuine = [], torch_npu.npu_fusion_attention
    monkeypatch.setattr(torch_npu, "npu_fusion_attention", lambda *a, **k: calls.append(k) or genuine(*a, **k))
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    q, k, v = random_qkv(61)
    expected = with_gradients(lambda *z: naive.lrsa_attention(*z, mode), q, k, v)
    with_gradients(lambda *z: fill.lrsa_attention(*z, mode), *on_npu(q, k, v))
    assert len(calls) == 1  # all fills of a layer
    assert calls.pop()["sparse_mode"] == 3
    monkeypatch.setattr(fill_npu, limit, {"_KEYS_PER_CALL": 150, "_SEQUENCES_PER_CALL": 4}[limit])
    assert_equal(with_gradients(lambda *z: fill.lrsa_attention(*z, mode), *on_npu(q, k, v)), expected)
    assert len(calls) > 2


def test_autocast_casts_what_the_operator_does_not():
    """npu_fusion_attention is not on autocast's list, and refuses queries and values of two dtypes."""
    mode = LRSA(lag_size=LAG, sink_size=SINK)
    q, k, v = random_qkv(61)
    q, k, v = on_npu(q, k, v.bfloat16())
    expected = naive.lrsa_attention(q.cpu(), k.cpu(), v.float().cpu(), mode)
    with torch.autocast("npu", torch.bfloat16):
        out = fill.lrsa_attention(q, k, v, mode)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float().cpu(), expected, rtol=0, atol=0.05)


def test_backend_auto_says_what_it_takes(caplog):
    execution._resolve.cache_clear()
    with caplog.at_level(logging.INFO, "lrsa_lightning"):
        assert execution._resolve("auto", "npu", 128) == "fill"
    assert "npu_fusion_attention" in caplog.text
    with pytest.raises(InputError, match="FlexAttention does not run on NPUs"):
        execution._resolve("flex", "npu", 128)


def parts_of(k, v):
    """The last 12 tokens by themselves, and what is before them in two."""
    return [(z[0], z[1]) for z in zip(k.split([20, 17, 12], dim=2), v.split([20, 17, 12], dim=2), strict=True)]


def test_merged_parts_have_the_gradients_of_one_softmax():
    from lrsa_lightning.attention.fill_npu import MergedAttention

    q, k, v = random_qkv(49)
    q = q[:, :, -12:].detach().requires_grad_()
    mask = torch.ones(12, 49, dtype=torch.bool).tril(37)
    expected = with_gradients(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True), q, k, v
    )

    def merged(q, k, v):
        return MergedAttention.apply(q, 0.25, *(z for part in parts_of(k, v) for z in part))

    assert_equal(with_gradients(merged, *on_npu(q, k, v)), expected)


def test_merging_under_autograd_would_have_wrong_gradients():
    """The trap that `MergedAttention` is for: the operator drops the gradients of its statistics without a word."""
    import torch_npu

    q, k, v = random_qkv(24)
    expected = with_gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, v)

    def merged(q, k, v):
        outs, sums = [], []
        for part in (slice(0, 9), slice(9, 24)):
            results = torch_npu.npu_fusion_attention(q, k[:, :, part], v[:, :, part], 4, "BNSD", scale=0.25)
            outs.append(results[0])
            sums.append(results[2][..., :1] * results[1][..., :1].exp())
        return (outs[0] * sums[0] + outs[1] * sums[1]) / (sums[0] + sums[1])

    out, grad_q, _, _ = with_gradients(merged, *on_npu(q, k, v))
    torch.testing.assert_close(out, expected[0], **EXACT)
    assert (grad_q - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("mode", [Vanilla(), Vanilla("eager"), LRSA(lag_size=LAG, sink_size=SINK)], ids=repr)
def test_model_equals_the_cpu_in_gradients(mode):
    ids = torch.randint(0, 97, (2, 61), generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "npu"):
        model = make_model().to(device)
        mode.install(model)
        loss = model(ids.to(device), labels=ids.to(device)).loss
        loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
    assert_equal(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [Vanilla(), LRSA(lag_size=LAG, sink_size=SINK)], ids=repr)
def test_generation_equals_the_cpu(mode):
    ids = torch.randint(0, 97, (1, 45), generator=torch.Generator().manual_seed(0))
    expected = generate(make_model(), ids, mode, max_new_tokens=12)
    got = generate(make_model().to("npu"), ids.to("npu"), mode, max_new_tokens=12)
    assert got.cpu().tolist() == expected.tolist()
