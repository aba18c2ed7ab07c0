"""One layer's attention and cache over a complete prompt, against dense FlashAttention-4."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench_attention import dense_fa4, milliseconds, random_qkv
from torch import Tensor
from transformers import DynamicCache, Qwen2Config

from bench.inputs import config_keys, model_config
from bench.runs import has_flash_4
from lrsa_lightning import LRSA


def shape(max_length: int) -> Qwen2Config:
    """Qwen2.5-1.5B's."""
    return model_config(config_keys("qwen2.5-1.5b", max_length))


@dataclass(frozen=True)
class LayerPrefill:
    """A row: Qwen2.5-1.5B's heads, one prompt.

    Attributes:
        length: tokens of the prompt.
        ratios: retention ratios of LRSA.
        lag_size: of LRSA.
    """

    length: int
    ratios: tuple[float, ...]
    lag_size: int

    @property
    def name(self) -> str:
        return f"one layer's prefill, {self.length} tokens"

    @torch.no_grad()
    def run(self, *_) -> dict[str, Any]:
        """layer_ms: milliseconds by name, dense first."""
        if not has_flash_4():
            return {"failed": "needs a Hopper GPU and flash-attn-4"}
        config, qkv = shape(self.length), random_qkv(self.length)
        calls = max(2, 2**19 // self.length)
        found = {"dense FlashAttention-4, DynamicCache": milliseconds(partial(_dense, config, *qkv), calls)}
        for ratio in self.ratios:
            mode = LRSA(lag_size=self.lag_size, retention_ratio=ratio)
            found[f"LRSA r={ratio:g}, LagKVCache"] = milliseconds(partial(_lrsa, mode, config, *qkv), calls)
        return {"layer_ms": found}


def _dense(config: Qwen2Config, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_fa4(q, *DynamicCache(config=config).update(k, v, 0))


def _lrsa(mode: LRSA, config: Qwen2Config, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cache = mode.for_length(q.shape[2]).make_cache(config, [q.shape[2]])
    cache.update(k, v, 0)
    return cache.layers[0].attend(q, mode.rule(0), mode, mode.execution)
