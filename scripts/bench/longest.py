"""The longest prompt that fits a device, estimated from bytes and checked once."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import Cache, DynamicCache, StaticCache

from bench.decoding import Settings, System
from bench.inputs import random_model
from lrsa_lightning.attention.rule import LagRule

_PIECE = 1024  # prompt tokens of a forward pass; transformers makes a mask of so many rows
_GRAIN = 1024  # contexts are multiples of it
_SHRINK, _TRIES = 0.97, 10


@dataclass(frozen=True)
class LongestContext:
    """A row: one prompt as long as it fits.

    Attributes:
        system: who generates.
    """

    system: System

    @property
    def name(self) -> str:
        return f"{self.system.name}, longest context"

    @torch.no_grad()
    def run(self, settings: Settings, device: torch.device) -> dict[str, Any]:
        """longest_tokens, estimated_tokens, and memory_gib, what was free before the model came.

        The check makes the cache's complete storage and feeds a piece of a prompt. A length that does not fit is made
        shorter by 3% and tried again.
        """
        if settings.memory is None and device.type != "cuda":
            return {"failed": "needs a CUDA GPU, or --memory"}
        memory = settings.memory or torch.cuda.mem_get_info()[0]
        model = random_model(settings.keys, device)
        weights = sum(p.nbytes for p in model.parameters())
        workspace = self._workspace(model, settings, device)
        of_length = partial(self._cache_bytes, settings)
        estimated = longest(lambda tokens: weights + workspace + of_length(tokens) <= memory)
        for shrunk in range(_TRIES):
            tokens = max(_GRAIN, int(estimated * _SHRINK**shrunk) // _GRAIN * _GRAIN)
            if self._fits(model, tokens, device):
                sizes = {"memory_gib": memory / 2**30, "cache_gib": of_length(tokens) / 2**30}
                return {"longest_tokens": tokens, "estimated_tokens": estimated, **sizes}
        return {"failed": f"an estimate of {estimated} tokens did not fit, nor {_TRIES - 1} shorter ones"}

    def _cache_bytes(self, settings: Settings, tokens: int) -> int:
        """Of all layers, with the most that is held on the way to so many tokens."""
        rule: LagRule | None = None if self.system.mode is None else self.system.mode.context_rule(tokens, 1, 0)
        return settings.dense_bytes(tokens if rule is None else rule.most_held(tokens))

    def _workspace(self, model, settings: Settings, device: torch.device) -> int:
        """Bytes that a forward pass of a piece takes besides weights and keys and values."""
        if device.type != "cuda":
            return 0
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._feed(model, _PIECE, device)
        return torch.cuda.max_memory_allocated() - before - settings.dense_bytes(_PIECE)

    def _fits(self, model, tokens: int, device: torch.device) -> bool:
        try:
            self._feed(model, tokens, device)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    def _feed(self, model, tokens: int, device: torch.device) -> None:
        """Feeds a piece of a prompt to a cache with room for the complete one."""
        piece = torch.zeros((1, min(_PIECE, tokens)), dtype=torch.int64, device=device)
        if self.system.mode is None:
            model.set_attn_implementation("sdpa")
            cache = _peer_cache(self.system, model.config, tokens, piece.shape[1], device)
            model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return
        mode = self.system.mode.for_length(tokens).for_generation(model.config)
        with mode.installed(model):
            model(piece, past_key_values=mode.make_cache(model.config, [piece.shape[1]]), logits_to_keep=1)


def longest(fits: Callable[[int], bool]) -> int:
    """The longest context, a multiple of 1024, that fits; at least 1024."""
    low, high = 1, 2
    while fits(high * _GRAIN):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _GRAIN) else (low, middle)
    return low * _GRAIN


def _peer_cache(system: System, config: Any, tokens: int, piece: int, device: torch.device) -> Cache:
    """A cache of transformers just before the last piece: a DynamicCache grows by copies."""
    if system.is_static:
        return StaticCache(config, max_cache_len=tokens)
    cache, heads = DynamicCache(config=config), config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if tokens > piece:
        for layer in range(config.num_hidden_layers):
            # Two tensors: one would be counted once.
            shape = 1, heads, tokens - piece, head_dim
            zeros = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
            cache.update(*zeros, layer)
    return cache
