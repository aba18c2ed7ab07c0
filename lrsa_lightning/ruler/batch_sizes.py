"""The number of prompts in a batch: as requested, or as many as have room for their KV caches."""

import logging
from collections.abc import Mapping

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.ruler.ranks import Ranks, least_of_ranks
from lrsa_lightning.ruler.records import CellName

log = logging.getLogger(__name__)

# Of the free memory. The activations of a piece of the prompt need the rest.
_USABLE = 0.8


class BatchSizes:
    """Shrinks the batches whose caches do not fit on an accelerator, and logs each choice once."""

    def __init__(self):
        self._logged: dict[CellName, int] = {}

    def fit(
        self, requested: Mapping[CellName, int], prompt_bytes: Mapping[CellName, int], device: torch.device
    ) -> dict[CellName, int]:
        """Prompts in a batch of each cell, the same on all ranks and one at least. All ranks must call it.

        Args:
            requested: prompts in a batch, by cell.
            prompt_bytes: bytes of one prompt's cache, by cell.
            device: the model's, with the model on it.
        """
        if (free := free_bytes(device)) is None:
            return dict(requested)
        free = least_of_ranks(free)
        usable = int(_USABLE * free)
        fitting = {cell: max(1, min(size, usable // prompt_bytes[cell])) for cell, size in requested.items()}
        too_large = {cell: size for cell, size in fitting.items() if requested[cell] * prompt_bytes[cell] > usable}
        if too_large and too_large != self._logged and Ranks.of_process_group().rank == 0:
            sizes = ", ".join(
                f"{'/'.join(map(str, cell))} {size} x {prompt_bytes[cell] / 2**30:.1f} GiB"
                for cell, size in too_large.items()
            )
            log.info(
                "RULER: caches do not fit in %d%% of the %.1f GiB free, so the batches get smaller. Their prompts and "
                "the cache of each: %s",
                *(100 * _USABLE, free / 2**30, sizes),
            )
        self._logged = too_large
        return fitting


def cache_bytes(mode: AttentionMode, length: int, config, element: int) -> int:
    """Bytes of the KV cache of one prompt, over all layers and heads.

    Args:
        mode: the attention whose cache it is.
        length: tokens of the prompt.
        config: the model's.
        element: bytes of a number.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rules = [mode.context_rule(length, 1, layer) for layer in range(config.num_hidden_layers)]
    stored = [length if rule is None else rule.stored_len(length) for rule in rules]
    return sum(stored) * 2 * config.num_key_value_heads * head_dim * element


def free_bytes(device: torch.device) -> int | None:
    """Free memory of an accelerator, including what torch holds in reserve; None on CPUs."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)
