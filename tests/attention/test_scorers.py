"""The controls of an ablation: what each keeps; LagKV's scores on the CPU, bit for bit."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrsa_lightning import LRSA
from lrsa_lightning.attention.scorers import ChunkLocation, LagKVScorer

SINK, LAG = 2, 8


def kept(mode, k, v=None, layer_idx=0):
    return mode.rule().select(k, k if v is None else v, layer_idx)[..., SINK:]


def test_key_norm_keeps_the_lowest_norms():
    k = torch.ones(1, 1, SINK + 2 * LAG, 4)
    k[0, 0, SINK : SINK + LAG] *= torch.tensor([5.0, 1, 7, 2, 8, 3, 6, 4]).unsqueeze(-1)
    mode = LRSA(lag_size=LAG, sink_size=SINK, scorer="key_norm")
    assert kept(mode, k).tolist() == [[[SINK + i for i in (1, 3, 5, 7)]]]


def test_window_keeps_nothing():
    mode = LRSA(lag_size=LAG, sink_size=SINK, scorer="window")
    assert kept(mode, torch.randn(1, 2, 50, 4)).shape == (1, 2, 0)


def test_random_depends_on_seed_layer_head_and_position_only():
    first, second = torch.randn(2, 3, 200, 4), torch.randn(2, 3, 200, 4)
    mode = LRSA(lag_size=LAG, sink_size=SINK, scorer="random")
    base = kept(mode, first)
    assert torch.equal(base, kept(mode, second))
    assert torch.equal(base[0], base[1])
    assert not torch.equal(base[0, 0], base[0, 1])
    assert not torch.equal(base, kept(mode, first, layer_idx=1))
    assert not torch.equal(base, kept(LRSA(lag_size=LAG, sink_size=SINK, scorer="random", seed=1), first))


def test_random_keeps_what_it_kept_in_earlier_versions():
    """A run that resumes goes on with the same tokens."""
    mode = LRSA(lag_size=LAG, sink_size=SINK, scorer="random", seed=3, retention_ratio=0.25)
    assert kept(mode, torch.zeros(1, 2, 34, 2), layer_idx=5).tolist() == [
        [[8, 9, 12, 15, 22, 25], [2, 6, 13, 17, 21, 22]]
    ]


def test_random_is_even_and_keeps_the_budget():
    mode = LRSA(lag_size=100, sink_size=0, retention_ratio=0.25, scorer="random")
    idx = kept(LRSA(lag_size=100, sink_size=SINK, retention_ratio=0.25, scorer="random"), torch.randn(1, 1, 20_000, 2))
    counts = torch.bincount((idx.flatten() - SINK) % 100 // 10, minlength=10)
    assert mode.rule().kept == 25
    assert counts.sum() == idx.shape[-1]
    assert counts.min() > 0.7 * counts.float().mean()
    assert counts.max() < 1.3 * counts.float().mean()


def test_v_weight_shifts_the_choice_to_the_values():
    torch.manual_seed(0)
    k, v = torch.randn(1, 2, 100, 8), torch.randn(1, 2, 100, 8)
    by_weight = [LRSA(lag_size=LAG, sink_size=SINK, v_weight=w) for w in (0.0, 1.0, 1e6)]
    keys_only, both, values = (kept(mode, k, v) for mode in by_weight)
    assert torch.equal(keys_only, kept(by_weight[0], k, torch.zeros_like(v)))
    assert torch.equal(values, kept(by_weight[0], v, k))
    assert not torch.equal(both, keys_only)


def plain_scores(k_BGND, v_BGND, lag):
    """LagKV's scores by torch's own standard deviation, of all chunks at once."""
    scores = 0
    for z_BGND in (k_BGND, v_BGND):
        z_BGCLD = z_BGND.float().unflatten(2, (-1, lag)) / 2
        low, high = z_BGCLD[:, :, 1:].amin(3, keepdim=True), z_BGCLD[:, :, 1:].amax(3, keepdim=True)
        normalised = ((z_BGCLD[:, :, :-1] - low) / (high - low)).clamp(-1e15, 1e15)
        scores = scores + normalised.masked_fill(high == low, 0.0).std(dim=-1).softmax(dim=-1)
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lag", "chunks", "dim"),
    [(8, 3, 16), (64, 3, 64), (128, 6, 80), (128, 3, 256), (257, 4, 96), (1000, 2, 128), (1024, 3, 64)],
)
def test_scores_on_the_cpu_have_the_bits_of_the_plain_formula(lag, chunks, dim, dtype):
    """Two passes in float64, piece by piece, change no score: tokens stay in the order of torch's own deviation."""
    torch.manual_seed(0)
    k = torch.randn(2, chunks * lag, 2, dim).transpose(1, 2)  # heads after tokens, as a model's projection gives them
    k[..., 3] = 7.0
    v = torch.randn(2, 2, chunks * lag, dim) * torch.logspace(-12, 12, dim)
    v[..., 1, :] = 3e38
    v[..., -lag:, ::5] = -2.0
    k, v = k.to(dtype), v.to(dtype)
    got = LagKVScorer().score(k, v, lag, ChunkLocation(0, 0))
    assert torch.equal(got, plain_scores(k, v, lag))


class LargestOperator(TorchDispatchMode):
    """Elements of the largest tensor that an operator computes with; views compute nothing."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            sizes = [one.numel() for one in args if isinstance(one, torch.Tensor)]
            self.elements = max(self.elements, *sizes, 0)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lag", "chunks", "dim"), [(128, 2, 64), (128, 2, 128), (1024, 2, 128), (256, 9, 128)])
def test_no_operator_of_a_selection_on_the_cpu_is_large_enough_for_several_threads(lag, chunks, dim, dtype):
    k = torch.randn(1, 2, chunks * lag, dim).to(dtype)
    with LargestOperator() as largest:
        LRSA(lag_size=lag).rule().keep_best(k, k, 0, 0)
    assert 0 < largest.elements <= 2**15
