"""Full causal attention, the baseline."""

import copy
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Any

import torch

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.hybrid import kept_layers
from lrsa_lightning.attention.layout import TILE
from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.attention.packing import CuSeqlens
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.errors import InputError

# transformers' implementations that all compute plain causal attention.
_SAME_RESULT = frozenset({"sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4"})


class Vanilla(AttentionMode):
    """Full causal attention by one of transformers' own implementations."""

    not_in_key = frozenset({"_reach"})

    def __init__(self, implementation: str = "sdpa"):
        """
        Args:
            implementation: name in transformers' AttentionInterface: sdpa, eager, flash_attention_2, ...
        """
        # Not called `backend`: a YAML that swaps LRSA for Vanilla hands on arguments of the same name.
        self.implementation = implementation
        self._reach: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(implementation={self.implementation!r})"

    def registry_key(self) -> str:
        # A subclass with a function of its own must not take transformers' name for it.
        is_theirs = type(self).install is Vanilla.install
        return self.implementation if is_theirs else super().registry_key()

    def check(self, config) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        if self.implementation not in known and "/" not in self.implementation:  # a kernel of the hub has one
            near = get_close_matches(self.implementation, known, n=1) or ["sdpa"]
            raise InputError(
                f"Vanilla: transformers has no attention implementation {self.implementation!r}: "
                f"did you mean {near[0]}?"
            )

    def row_arguments(self, cu_seqlens: CuSeqlens | None, device: torch.device) -> dict[str, Any]:
        known = super().row_arguments(cu_seqlens, device)
        return known | _of_flash(cu_seqlens, device) if cu_seqlens and "flash" in self.implementation else known

    def for_length(self, num_tokens: int) -> "Vanilla":
        mode = copy.copy(self)
        mode._reach = num_tokens
        return mode

    def for_generation(self, config) -> AttentionMode:
        """Full attention over storage of fixed size, where the model does nothing else than LRSA can do.

        It decodes by the same kernels, and CUDA graphs, as the compressed cache. A subclass runs itself.
        """
        if type(self) is not Vanilla or self.implementation not in _SAME_RESULT:
            return self
        text = config.get_text_config(decoder=True)
        if kept_layers(text):  # the kernels would run in some layers alone
            return self
        mode = LRSA(retention_ratio=1.0, skip_layers=range(text.num_hidden_layers))
        if self._reach is not None:
            mode = mode.for_length(self._reach)
        try:
            mode.check(config)
        except InputError:
            return self
        return mode

    def context_rule(self, num_tokens: int, size: int, layer_idx: int | None = None) -> LagRule:
        """A rule that keeps everything, in chunks small enough for an early and a late segment on each rank."""
        lag_size = max(1, num_tokens // (4 * size))
        if lag_size > TILE:
            lag_size -= lag_size % TILE
        return LagRule(sink_size=0, lag_size=lag_size, kept=lag_size)

    def make_cache(self, config, lengths: Sequence[int] | None = None):
        from transformers import DynamicCache

        return DynamicCache(config=config)


def _of_flash(cu_seqlens: CuSeqlens, device: torch.device) -> dict[str, Any]:
    """Packed rows as transformers' `FlashAttentionKwargs`.

    Its flash attention has no mask. It looks for packed samples itself, in each layer, and waits for the device. And it
    looks in batches of one row alone: in others, tokens would see other samples of their row.
    """
    lengths = [end - start for row in cu_seqlens for start, end in pairwise(row)]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    if device.type == "cuda":  # the host would wait for a copy of other memory
        bounds = bounds.pin_memory()
    bounds, longest = bounds.to(device, non_blocking=True), max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
