"""vLLM's TRITON_ATTN over a compressed cache. Its parts are tested; no test has run it end to end on a GPU."""

from torch import Tensor
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from lrsa_lightning.serving.vllm.backends.paged import read_paged
from lrsa_lightning.serving.vllm.implementation import LagImpl
from lrsa_lightning.serving.vllm.metadata import LagBuilder


class LagTritonImpl(LagImpl, TritonAttentionImpl):
    """See `LagImpl`."""

    def read_blocks(self, layer, blocks_RC: Tensor) -> tuple[Tensor, Tensor]:
        return read_paged(layer.kv_cache, blocks_RC)


class LagTritonBuilder(LagBuilder, TritonAttentionMetadataBuilder):
    """See `LagBuilder`."""


class LagTritonBackend(TritonAttentionBackend):
    """vLLM's TRITON_ATTN over a compressed cache."""

    @staticmethod
    def get_impl_cls() -> type[LagTritonImpl]:
        return LagTritonImpl

    @staticmethod
    def get_builder_cls() -> type[LagTritonBuilder]:
        return LagTritonBuilder
