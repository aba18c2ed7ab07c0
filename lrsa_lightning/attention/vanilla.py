"""Full causal attention, the baseline."""

from collections.abc import Sequence

from lrsa_lightning.attention.base import AttentionMode


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
        return f"Vanilla(implementation={self.implementation!r})"

    def registry_key(self) -> str:
        return self.implementation

    def make_cache(self, config, lengths: Sequence[int] | None = None):
        from transformers import DynamicCache

        return DynamicCache(config=config)
