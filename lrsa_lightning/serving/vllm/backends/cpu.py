"""vLLM's attention on CPUs, whose keys are stored in an order that its kernels choose.

Shape suffixes: R requests, C blocks of each, G KV heads, P places in a block, D head size.
"""

from functools import cache

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from lrsa_lightning.serving.vllm.implementation import LagImpl
from lrsa_lightning.serving.vllm.metadata import LagBuilder

# Whole numbers below it are exact in every dtype of a cache.
_DIGIT = 128


class LagCPUImpl(LagImpl, CPUAttentionBackendImpl):
    """See `LagImpl`."""

    def read_blocks(self, layer, blocks_RC: Tensor) -> tuple[Tensor, Tensor]:
        cache_BGPE = layer.kv_cache
        blocks = cache_BGPE[blocks_RC].flatten(-2).chunk(2, dim=-1)  # all keys of a block come before its values
        size, dim, dtype = cache_BGPE.shape[2], cache_BGPE.shape[3] // 2, cache_BGPE.dtype
        orders = _orders(layer.isa, size, dim, dtype)
        return tuple(_in_order(z, order, size, dim) for z, order in zip(blocks, orders, strict=True))


def _in_order(z_RCGE: Tensor, order: Tensor | None, size: int, dim: int) -> Tensor:
    """[R, G, C * P, D] of the raw content of blocks; ``order`` is None where each channel's places come together."""
    if order is None:
        z_RCGPD = z_RCGE.unflatten(-1, (dim, size)).transpose(-1, -2)
    else:
        z_RCGPD = z_RCGE[..., order].unflatten(-1, (size, dim))
    return z_RCGPD.transpose(1, 2).flatten(2, 3)


@cache
def _orders(isa: str, size: int, dim: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Where each element of a block's keys and values is stored, found by writing numbers into a block."""
    numbers = torch.arange(size * dim).view(size, 1, dim)
    found = [torch.zeros(size * dim, dtype=torch.int64) for _ in range(2)]
    for power in range(4):
        digit = (numbers // _DIGIT**power % _DIGIT).to(dtype)
        cache = digit.new_zeros(1, 1, 2 * size, dim)
        keys, values = cache.chunk(2, dim=2)
        slots = torch.arange(size)
        options = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
        ops.cpu_attn_reshape_and_cache(digit, digit.clone(), keys, values, slots, isa, **options)
        for total, stored in zip(found, (keys, values), strict=True):
            total += stored.flatten().long() * _DIGIT**power
    channels_first = numbers.view(size, dim).t().flatten()
    return tuple(None if torch.equal(stored, channels_first) else stored.argsort() for stored in found)


class LagCPUBuilder(LagBuilder, CPUAttentionMetadataBuilder):
    """See `LagBuilder`."""


class LagCPUBackend(CPUAttentionBackend):
    """vLLM's CPU_ATTN over a compressed cache."""

    @staticmethod
    def get_impl_cls() -> type[LagCPUImpl]:
        return LagCPUImpl

    @staticmethod
    def get_builder_cls() -> type[LagCPUBuilder]:
        return LagCPUBuilder
