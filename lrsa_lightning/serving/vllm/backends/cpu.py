"""vLLM's attention on CPUs, whose keys are stored in an order that its kernels choose.

Shape suffixes: R requests, C blocks of each, G KV heads, P places in a block, D head size.
"""

from collections.abc import Callable
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
        parts = cache_BGPE[blocks_RC].flatten(-2).chunk(2, dim=-1)  # all keys of a block come before its values
        readers = _readers(layer.isa, cache_BGPE.shape[2], cache_BGPE.shape[3] // 2, cache_BGPE.dtype)
        return tuple(read(z).transpose(1, 2).flatten(2, 3) for read, z in zip(readers, parts, strict=True))


@cache
def _readers(isa: str, size: int, dim: int, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """For keys and for values, what makes [..., P, D] of the P * D elements of a block as they are stored.

    Numbers that are written into a block show the order.
    """
    numbers = torch.arange(size * dim).view(size, 1, dim)
    found = [torch.zeros(size * dim, dtype=torch.int64) for _ in range(2)]
    for power in range(4):
        digit = (numbers // _DIGIT**power % _DIGIT).to(dtype)
        stored = digit.new_zeros(1, 1, 2 * size, dim).chunk(2, dim=2)
        options = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
        ops.cpu_attn_reshape_and_cache(digit, digit.clone(), *stored, torch.arange(size), isa, **options)
        for total, part in zip(found, stored, strict=True):
            total += part.flatten().long() * _DIGIT**power
    return [_reader(stored, size, dim) for stored in found]


def _reader(stored: Tensor, size: int, dim: int) -> Callable[[Tensor], Tensor]:
    numbers = torch.arange(size * dim)
    if torch.equal(stored, numbers):
        return lambda z: z.unflatten(-1, (size, dim))
    if torch.equal(stored, numbers.view(size, dim).t().flatten()):
        return lambda z: z.unflatten(-1, (dim, size)).transpose(-1, -2)
    order = stored.argsort()
    return lambda z: z[..., order].unflatten(-1, (size, dim))


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
