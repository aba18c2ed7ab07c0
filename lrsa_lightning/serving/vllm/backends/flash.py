"""vLLM's FLASH_ATTN over a compressed cache. Its parts are tested; no test has run it end to end on a GPU."""

from torch import Tensor
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from lrsa_lightning.serving.vllm.backends.paged import read_paged
from lrsa_lightning.serving.vllm.implementation import LagImpl
from lrsa_lightning.serving.vllm.metadata import LagBuilder


class LagFlashImpl(LagImpl, FlashAttentionImpl):
    """See `LagImpl`."""

    def read_blocks(self, layer, blocks_RC: Tensor) -> tuple[Tensor, Tensor]:
        return read_paged(layer.kv_cache, blocks_RC)


class LagFlashBuilder(LagBuilder, FlashAttentionMetadataBuilder):
    """See `LagBuilder`."""


class LagFlashBackend(FlashAttentionBackend):
    """vLLM's FLASH_ATTN over a compressed cache."""

    @staticmethod
    def get_impl_cls() -> type[LagFlashImpl]:
        return LagFlashImpl

    @staticmethod
    def get_builder_cls() -> type[LagFlashBuilder]:
        return LagFlashBuilder
