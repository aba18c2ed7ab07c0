"""Packed rows through FlexAttention: exact, and compiled for few lengths. Its kernel is replaced by SDPA here."""

import pytest
import torch

from lrsa_lightning import LRSA
from lrsa_lightning.attention import fill, flex, naive
from lrsa_lightning.attention.flex import pick_kernel
from tests.attention.host_waits import HostWaits

BOUNDARIES = [[0, 70, 73, 300], [0, 131, 300]]
# No kernel of Triton's: the random scorer has none, nor has a head size that is no power of two.
MODE = LRSA(lag_size=8, sink_size=4, scorer="random")
HEAD_DIM = 24


@pytest.fixture
def compiled(monkeypatch):
    """The shapes that FlexAttention would compile for."""
    shapes = set()

    def attend(q, k, v, block_mask, scale, enable_gqa, kernel_options):
        shapes.add((q.shape, k.shape))
        query, key = torch.arange(q.shape[2]).unsqueeze(-1), torch.arange(k.shape[2])
        return fill.sdpa(q, k, v, block_mask.mask_mod(0, 0, query, key), scale)

    monkeypatch.setattr(flex, "_flex_attention", lambda: attend)
    monkeypatch.setattr(flex, "pick_kernel", lambda q: "TRITON")
    return shapes


def random_qkv(batch, num_tokens):
    torch.manual_seed(0)
    shapes = [(batch, num_tokens, heads, HEAD_DIM) for heads in (4, 2, 2)]
    return [torch.randn(shape, dtype=torch.float64).transpose(1, 2).requires_grad_() for shape in shapes]


def test_padded_samples_equal_naive_in_output_and_gradients(compiled):
    qkv = random_qkv(2, 300)
    outcomes = []
    for execution in (flex, naive):
        out = execution.lrsa_attention(*qkv, MODE, cu_seqlens=BOUNDARIES)
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        outcomes.append([out, *torch.autograd.grad(out, qkv, weights)])
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert {q[2] for q, _ in compiled} == {72, 240, 144, 176}  # of 70, 227, 131, 169 tokens; 3 compress nothing


@torch.no_grad()
def test_many_lengths_compile_few_kernels(compiled):
    boundaries = [0, *torch.arange(130, 257).cumsum(0).tolist()]
    qkv = random_qkv(1, boundaries[-1])
    flex.lrsa_attention(*qkv, MODE, cu_seqlens=[boundaries])
    assert len(compiled) == 8


@torch.no_grad()
def test_rows_of_one_sample_are_not_padded(compiled):
    flex.lrsa_attention(*random_qkv(2, 131), MODE)
    flex.lrsa_attention(*random_qkv(2, 131), MODE, cu_seqlens=[[0, 131]] * 2)
    assert {q[:3] for q, _ in compiled} == {(2, 4, 131)}


def test_the_host_waits_for_nothing(compiled):
    """Neither where lengths are new, nor in the backward."""
    qkv = random_qkv(2, 300)
    flex.block_mask.cache_clear()
    flex._training_layout.cache_clear()
    with HostWaits() as host:
        flex.lrsa_attention(*qkv, MODE, cu_seqlens=BOUNDARIES).sum().backward()
    assert host.found == []


def test_flash_takes_every_length():
    assert flex._compiled_length(torch.empty(1, 4, 131, HEAD_DIM), kernel="FLASH") == 131


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_kernel_is_picked_for_what_the_attention_computes_in(monkeypatch, autocast, dtype):
    """Under autocast RoPE leaves queries in float32."""
    seen = []
    monkeypatch.setattr(flex, "_flash_runs", lambda device, dtype, head_dim: seen.append(dtype) or True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: autocast)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: torch.bfloat16)
    assert pick_kernel(torch.empty(1, 4, 9, 64)) == "FLASH"
    assert seen == [dtype]
