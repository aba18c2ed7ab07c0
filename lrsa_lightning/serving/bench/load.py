"""The requests of a measurement, and the engines that take them."""

import random
from dataclasses import dataclass, field
from typing import Any

from lrsa_lightning.attention import Vanilla
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.batch_sizes import cache_bytes
from lrsa_lightning.serving.served_model import ServedModel

_DENSE = "dense"
_BLOCK = 128  # tokens of vLLM's largest usual block


@dataclass(frozen=True)
class Load:
    """What each engine is given.

    Attributes:
        prompt_tokens: of each request.
        new_tokens: of each answer.
        requests: that come at once.
    """

    prompt_tokens: int
    new_tokens: int
    requests: int

    @property
    def tokens(self) -> int:
        """Of a request, at its end."""
        return self.prompt_tokens + self.new_tokens

    def prompts(self, vocab_size: int, part: str) -> list[list[int]]:
        """Random tokens, the same for the same part; no two parts share a prefix that vLLM could reuse."""
        draws = random.Random(part)
        return [draws.choices(range(vocab_size), k=self.prompt_tokens) for _ in range(self.requests)]


@dataclass(frozen=True)
class Benchmark:
    """A model, the retention ratios to compare with full attention, and the load.

    Attributes:
        model: names a rule.
        ratios: retention ratios; each is an engine.
        load: of each engine.
        cache_bytes: for the keys and values of each engine.
        more: further arguments of vLLM's engines.
    """

    model: ServedModel
    ratios: tuple[float, ...]
    load: Load
    cache_bytes: int
    more: dict[str, Any] = field(default_factory=dict)

    def check(self, device_type: str) -> None:
        """Raises an InputError for a model without a rule, a ratio that does not fit, or a prompt that is too long."""
        if self.model.mode is None:
            raise InputError(f"{self.model.name} names no rule in config.json: there is nothing to compare")
        for ratio in self.ratios:
            self.model.check(device_type, ratio)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and self.load.tokens > positions:
            raise InputError(
                f"--prompt_tokens {self.load.prompt_tokens} and --new_tokens {self.load.new_tokens} are more than the "
                f"{positions} positions of the model: lower them"
            )

    def engines(self, device_type: str) -> dict[str, dict[str, Any]]:
        """Arguments of vLLM's engines, by name; that of full attention comes first."""
        compressed = {f"r={ratio:g}": self.model.engine(ratio) for ratio in self.ratios}
        engines = {_DENSE: self.model.dense_engine(), **compressed}
        shared: dict[str, Any] = {
            "max_model_len": self.load.tokens,
            "max_num_seqs": self.load.requests,
            "kv_cache_memory_bytes": self.cache_bytes,
            "skip_tokenizer_init": True,
        }
        if device_type != "cpu":  # an engine looks for this part of the memory, and all of them are there at once
            shared["gpu_memory_utilization"] = 0.9 / len(engines)
        return {name: {**arguments, **shared, **self.more} for name, arguments in engines.items()}


def request_bytes(model: ServedModel, load: Load, element: int) -> int:
    """Bytes of the blocks of a complete request under full attention, and of one more: vLLM keeps one for itself.

    Args:
        model: whose they are.
        load: has the length of a request.
        element: bytes of a number.
    """
    blocks = -(-load.tokens // _BLOCK) + 1
    return cache_bytes(Vanilla(), blocks * _BLOCK, model.config, element)
