"""Attention of a compressed layer: a stock implementation, called once a round of the step."""

from abc import abstractmethod

from torch import Tensor

from lrsa_lightning.serving.vllm.compression import compress
from lrsa_lightning.serving.vllm.metadata import LagMetadata
from lrsa_lightning.serving.vllm.steps import Move


class LagImpl:
    """Mixin before a stock implementation."""

    @abstractmethod
    def read_blocks(self, layer, blocks_RC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, G, C * B, D] of blocks of the layer's cache, in the order of their slots."""

    def compress(self, layer, move: Move) -> None:
        """Compresses chunks in the layer's cache."""
        compress(
            move,
            layer.rule,
            layer.layer_idx,
            lambda blocks_RC: self.read_blocks(layer, blocks_RC),
            lambda slots, k, v: self.do_kv_cache_update(layer, k, v, layer.kv_cache, slots),
        )

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *scales, **more) -> Tensor:
        """See the stock implementation. The new keys are in the cache already."""
        if not isinstance(attn_metadata, LagMetadata):  # none in a profiling run
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **more)
        for call in attn_metadata.calls:
            if call.move:
                self.compress(layer, call.move)
            states = query, key, value, output
            if call.rows is not None:
                states = tuple(z[call.rows] for z in states)
            q, k, v, out = states
            super().forward(layer, q, k, v, kv_cache, call.metadata, out, *scales, **more)
            if isinstance(call.rows, Tensor):
                output[call.rows] = out
        return output
