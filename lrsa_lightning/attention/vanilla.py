"""Full causal attention, the baseline."""

from collections.abc import Sequence
from difflib import get_close_matches

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.layout import TILE
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.errors import InputError


class Vanilla(AttentionMode):
    """Full causal attention by one of transformers' own implementations."""

    def __init__(self, implementation: str = "sdpa"):
        """
        Args:
            implementation: name in transformers' AttentionInterface: sdpa, eager, flash_attention_2, ...
        """
        # Not called `backend`: a YAML that swaps LRSA for Vanilla hands on arguments of the same name.
        self.implementation = implementation

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

    def context_rule(self, num_tokens: int, size: int, layer_idx: int | None = None) -> LagRule:
        """A rule that keeps everything, in chunks small enough for an early and a late segment on each rank."""
        lag_size = max(1, num_tokens // (4 * size))
        if lag_size > TILE:
            lag_size -= lag_size % TILE
        return LagRule(sink_size=0, lag_size=lag_size, kept=lag_size)

    def make_cache(self, config, lengths: Sequence[int] | None = None):
        from transformers import DynamicCache

        return DynamicCache(config=config)
