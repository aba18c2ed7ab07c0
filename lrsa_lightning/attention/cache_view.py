"""How to read the keys that a layer of the cache returns.

Shape suffixes: B batch, T tokens held.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.errors import InputError

WAY_OUT = "Use `with mode.installed(model):` around it, and the cache that this mode makes (mode.make_cache)"


@dataclass
class CacheView:
    """How to read the keys that a layer's `update` returned last, for queries that are the newest tokens.

    Attributes:
        rule: the layer's.
        owner: the mode or rule that the cache was made for, as text.
        layout: of the keys; None for rows of unequal length.
        padding_B: int64 [B], unused keys in front of each row; None when all rows are equally long.
        taken: whether an attention under the rule has read the keys.
    """

    rule: LagRule
    owner: str
    layout: KVLayout | None = None
    padding_B: Tensor | None = None
    taken: bool = False

    def take(self, rule: LagRule, reader: Any) -> None:
        """Notes that an attention under ``rule`` reads the keys.

        Raises:
            InputError: the cache follows another rule than the ``reader``, an attention mode.
        """
        if rule != self.rule:
            raise InputError(f"this cache follows {self.owner}, but the model runs {reader!r}. {WAY_OUT}")
        self.taken = True

    def row_mask(self, num_keys: int) -> Tensor:
        """True at the keys of each row, False at the padding in front of them: [B, 1, 1, T]."""
        places = torch.arange(num_keys, device=self.padding_B.device)
        return (places >= self.padding_B[:, None])[:, None, None]
