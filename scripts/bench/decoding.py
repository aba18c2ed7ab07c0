"""The rows of bench_generate.py: who generates, and how a prompt and its new tokens are timed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from bench.clock import Measured, StepClock, TokenClock, copy_rate
from bench.inputs import random_model
from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.decoding import DecodingStep
from lrsa_lightning.generation import prefill


@dataclass(frozen=True)
class Settings:
    """What all rows have in common.

    Attributes:
        keys: of the model's configuration.
        warmup: new tokens before the measured ones.
        new_tokens: measured ones.
        profiled: new tokens after them, under the profiler.
        prefill_tokens: prompt tokens of all rows that one forward pass may take.
        memory: bytes of the device that a longest context may take; all that is free when None.
    """

    keys: dict[str, Any]
    warmup: int
    new_tokens: int
    profiled: int
    prefill_tokens: int
    memory: int | None = None

    @property
    def steps(self) -> int:
        return self.warmup + self.new_tokens + self.profiled

    def piece(self, length: int, batch: int) -> int:
        """Prompt tokens of a row in one forward pass: all of them, or, with masks in mind, far fewer."""
        return length if length * batch <= self.prefill_tokens else max(1, self.prefill_tokens // 4 // batch)

    def dense_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens in all layers, bfloat16."""
        head_dim = self.keys.get("head_dim") or self.keys["hidden_size"] // self.keys["num_attention_heads"]
        return tokens * self.keys["num_hidden_layers"] * 2 * self.keys["num_key_value_heads"] * head_dim * 2


@dataclass(frozen=True)
class System:
    """Who generates.

    Attributes:
        name: of the rows.
        mode: the attention of our `generate`; None for transformers' own.
        is_static: of transformers, with StaticCache and what it compiles for it; else with DynamicCache.
    """

    name: str
    mode: AttentionMode | None = None
    is_static: bool = False

    def generate(self, model, prompt_BN: Tensor, settings: Settings, tick: Callable[[], None]) -> int:
        """Feeds the prompt and new tokens, and calls ``tick`` after each new token until it raises `Measured`.

        Returns:
            bytes of the keys and values held by then.
        """
        if self.mode is None:
            return _by_transformers(self, model, prompt_BN, settings, tick)
        return _by_us(self.mode, model, prompt_BN, settings, tick)


def systems(ratios: list[float], lag_size: int) -> list[System]:
    """Those of bench_generate.py."""
    lrsa = [System(f"LRSA r={ratio:g}", LRSA(lag_size=lag_size, retention_ratio=ratio)) for ratio in ratios]
    peers = [System("transformers DynamicCache"), System("transformers StaticCache, compiled", is_static=True)]
    return [*peers, System("dense", Vanilla()), *lrsa]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        system: who generates.
        length: tokens of a prompt.
        batch: prompts.
    """

    system: System
    length: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.system.name}, batch {self.batch}, {self.length} tokens"

    def run(self, settings: Settings, device: torch.device) -> dict[str, Any]:
        """prefill_s, held_bytes, dense_bytes, copy_gb_s and the figures of `StepClock`, a step being a new token."""
        rate = copy_rate(device)
        torch.compiler.reset()  # else compiled code would be one for all shapes so far
        model = random_model(settings.keys, device)
        prompt = torch.randint(settings.keys["vocab_size"], (self.batch, self.length), device=device)
        # The first run compiles. It ends early.
        self.system.generate(model, prompt, settings, TokenClock(device, StepClock(device, 1, 1, 0)).tick)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steps = StepClock(device, settings.warmup, settings.new_tokens, settings.profiled)
        clock = TokenClock(device, steps)
        held = self.system.generate(model, prompt, settings, clock.tick)
        dense = settings.dense_bytes(self.batch * (self.length + steps.total))
        sizes = {"held_bytes": held, "dense_bytes": dense, "copy_gb_s": rate / 1e9}
        return {"prefill_s": clock.prefill_s, **sizes, **steps.figures}


@torch.no_grad()
def _by_us(mode: AttentionMode, model, prompt_BN: Tensor, settings: Settings, tick: Callable[[], None]) -> int:
    """The forward passes of `lrsa_lightning.generate`."""
    batch, length = prompt_BN.shape
    mode = mode.for_length(length + settings.steps + 1).for_generation(model.config)
    cache = mode.make_cache(model.config, [length] * batch)
    with mode.installed(model), suppress(Measured):
        for _, hidden_BnD in prefill(model, cache, prompt_BN, -(-length // settings.piece(length, batch))):
            last_BD = hidden_BnD[:, -1]
        token_B = model.get_output_embeddings()(last_BD).argmax(dim=-1)
        del hidden_BnD, last_BD
        step = DecodingStep(model, cache, torch.full((batch, 1), length, device=prompt_BN.device))
        while True:
            tick()
            token_B = step(token_B).argmax(dim=-1)
    return cache_bytes(cache)


def _by_transformers(system: System, model, prompt_BN: Tensor, settings: Settings, tick: Callable[[], None]) -> int:
    """transformers' `generate`, with sdpa. On a GPU it compiles decoding with a StaticCache by itself."""
    batch, length = prompt_BN.shape
    piece = settings.piece(length, batch)
    model.set_attn_implementation("sdpa")
    model.generation_config.eos_token_id = None
    ticks = _Ticks(tick)
    with suppress(Measured):
        model.generate(
            prompt_BN,
            attention_mask=torch.ones_like(prompt_BN),
            do_sample=False,
            max_new_tokens=settings.steps + 1,
            cache_implementation="static" if system.is_static else None,
            prefill_chunk_size=piece if piece < length else None,
            logits_processor=LogitsProcessorList([ticks]),
        )
    # The last new token is in no cache. A StaticCache has room for all others from the start.
    return settings.dense_bytes(batch * (length + (settings.steps if system.is_static else ticks.tokens - 1)))


class _Ticks(LogitsProcessor):
    """Changes no logits: `generate` calls it once for each new token.

    Attributes:
        tokens: its calls.
    """

    def __init__(self, tick: Callable[[], None]):
        self._tick = tick
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.tokens += 1
        self._tick()
        return scores
