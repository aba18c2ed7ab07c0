"""The number of prompts in a batch: as given, or as many as the memory has room for."""

import logging
from collections.abc import Mapping
from typing import Literal

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.layer_pairs import stored_tokens
from lrsa_lightning.decoder_sizes import feed_forward_size, head_dim, kv_heads
from lrsa_lightning.ruler.batches import CacheName
from lrsa_lightning.ruler.ranks import Ranks, least_of_ranks

log = logging.getLogger(__name__)

# Of the free memory: the rest is for what the kernels need beside their results.
_USABLE = 0.8
# A step of more rows takes longer by nearly as much as it saves.
_MOST = 32
_ON_CPU = 8
# Qwen2.5-1.5B on an H100: a pass takes the host 54 ms, and the device 310 to 350 ms for each 32768 tokens.
_LEAST_IN_A_PASS = 16384


class BatchSizes:
    """Chooses how many prompts are scored together, and logs each choice once.

    Args:
        batch_size: prompts in a batch at most; auto: as many as fit, up to 32, or 8 on a CPU.
    """

    def __init__(self, batch_size: int | Literal["auto"]):
        self._given = batch_size
        self._logged: dict[CacheName, int] = {}

    def fit(
        self, prompts: Mapping[CacheName, int], prompt_bytes: Mapping[CacheName, int], device: torch.device
    ) -> dict[CacheName, int]:
        """Prompts in a batch, the same on all ranks and one at least. All ranks must call it.

        Args:
            prompts: that there are on each rank, by length and budget.
            prompt_bytes: that one prompt needs, by length and budget.
            device: the model's, with the model on it.
        """
        free = free_bytes(device)
        most = (_ON_CPU if free is None else _MOST) if self._given == "auto" else self._given
        requested = {cache: min(most, number) for cache, number in prompts.items()}
        if free is None:
            return requested
        free = least_of_ranks(free)
        usable = int(_USABLE * free)
        fitting = {cache: max(1, min(size, usable // prompt_bytes[cache])) for cache, size in requested.items()}
        too_large = {cache: size for cache, size in fitting.items() if requested[cache] * prompt_bytes[cache] > usable}
        if too_large and too_large != self._logged and Ranks.of_process_group().rank == 0:
            sizes = ", ".join(
                f"{length}/{budget} {size} x {prompt_bytes[length, budget] / 2**30:.1f} GiB"
                for (length, budget), size in too_large.items()
            )
            log.info(
                "RULER: batches of %d prompts do not fit in %d%% of the %.1f GiB free, so they get smaller. Their "
                "prompts, and what each needs: %s",
                *(most, 100 * _USABLE, free / 2**30, sizes),
            )
        self._logged = too_large
        return fitting


def tokens_of_a_pass(prefill_chunk_size: int, rows: int, device: torch.device) -> int:
    """Prompt tokens of a row in a forward pass: more than requested where the host would be slower than the device.

    Args:
        prefill_chunk_size: as requested.
        rows: of the batch.
        device: the model's.
    """
    return prefill_chunk_size if device.type == "cpu" else max(prefill_chunk_size, _LEAST_IN_A_PASS // rows)


def activation_bytes(num_tokens: int, config, element: int) -> int:
    """Bytes that a layer computes for a piece of a prompt: about four results of the MLP's width, eight of the hidden.

    Args:
        num_tokens: of the piece.
        config: the model's.
        element: bytes of a number.
    """
    return num_tokens * element * (4 * feed_forward_size(config) + 8 * config.hidden_size)


def cache_bytes(mode: AttentionMode, length: int, config, element: int) -> int:
    """Bytes of the KV cache of one prompt, over all layers and heads.

    Args:
        mode: the attention whose cache it is.
        length: tokens of the prompt.
        config: the model's.
        element: bytes of a number.
    """
    stored = sum(stored_tokens(config, mode, length))
    return stored * 2 * kv_heads(config) * head_dim(config) * element


def free_bytes(device: torch.device) -> int | None:
    """Free memory of an accelerator, including what torch holds in reserve; None on CPUs."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)
