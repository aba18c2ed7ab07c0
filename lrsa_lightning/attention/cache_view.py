"""What a layer of the cache hands to the attention function: the keys that the new tokens' queries need.

Shape suffixes: B batch, G KV heads, C compact keys, R raw keys, D head size.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lrsa_lightning.attention.layout import KVLayout
from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.attention.token_step import TokenStep
from lrsa_lightning.errors import InputError

WAY_OUT = "Use `with mode.installed(model):` around it, and the cache that this mode makes (mode.make_cache)"


@dataclass(frozen=True)
class Piece:
    """Keys of consecutive new tokens of one row, or of equal rows.

    Attributes:
        rows: of the batch.
        columns: of the queries.
        compact: keys and values [B, G, C, D] of the sink and of the kept tokens.
        raw: keys and values [B, G, R, D] of the later tokens; the queries' own come last.
        layout: of these keys.
    """

    rows: slice
    columns: slice
    compact: tuple[Tensor, Tensor]
    raw: tuple[Tensor, Tensor]
    layout: KVLayout


@dataclass
class CacheView:
    """What the last `update` of a layer left for its attention.

    Attributes:
        rule: the layer's.
        owner: the mode or rule that the cache was made for, as text.
        pieces: of a forward with several tokens a row.
        token: of a forward with one token a row.
        taken: whether an attention under the rule has read them.
    """

    rule: LagRule
    owner: str
    pieces: list[Piece] = field(default_factory=list)
    token: TokenStep | None = None
    taken: bool = False

    def take(self, rule: LagRule, reader: Any) -> tuple[list[Piece], TokenStep | None]:
        """Hands the keys to an attention under ``rule``, and holds them no longer: pieces of a prompt are large.

        Raises:
            InputError: the cache follows another rule than the ``reader``, an attention mode.
        """
        if rule != self.rule:
            raise InputError(f"this cache follows {self.owner}, but the model runs {reader!r}. {WAY_OUT}")
        pieces, self.pieces, self.taken = self.pieces, [], True
        return pieces, self.token
