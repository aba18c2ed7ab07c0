"""Cache budgets: retention ratios, and the attention of each at a length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
from lrsa_lightning.attention.rule import LagRule, kept_per_chunk
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, PositiveUnitInterval, checked
from lrsa_lightning.ruler.choices import check_choice


@checked
@dataclass(frozen=True)
class CacheBudgets:
    """Retention ratios by label: r1 for the dense cache, r0.5, ...

    Attributes:
        ratios: retention ratios r; 1 is dense. No two have one label.
        lag_divisor: lag = length / lag_divisor, as in the paper's Table 1.
        sink_size: S of the compressed cache.
    """

    ratios: Sequence[PositiveUnitInterval]
    lag_divisor: PositiveInt = 32
    sink_size: NonNegativeInt = 16

    def __post_init__(self):
        if len(self.ratios):
            check_choice(self.labels, "budgets")

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the ratios."""
        return [f"r{ratio:g}" for ratio in self.ratios]

    def check_lengths(self, lengths: Iterable[int]) -> None:
        """Checks that each budget has a meaning at each length.

        Raises:
            InputError: the lag has no token, the cache keeps nothing of a chunk, or it never drops a token.
        """
        for length, (label, ratio) in product(lengths, zip(self.labels, self.ratios, strict=True)):
            if ratio < 1 and (reason := self._failing(length, ratio)):
                raise InputError(
                    f"budgets: {label} at length {length} with lag_divisor {self.lag_divisor} and sink_size "
                    f"{self.sink_size}: {reason}"
                )

    def _failing(self, length: int, ratio: float) -> str | None:
        lag_size = length // self.lag_divisor
        if lag_size == 0:
            return "the lag has no token: give a longer length or a smaller lag_divisor"
        kept = kept_per_chunk(lag_size, ratio)
        if kept == 0:
            return f"nothing is kept of a lag of {lag_size} tokens: give a larger budget, or a smaller lag_divisor"
        if LagRule(self.sink_size, lag_size, kept).chunk_of(length - 1) < 2:
            return "nothing is ever dropped, it is the dense cache: give a larger lag_divisor or a smaller sink_size"
        return None

    def mode(self, length: int, label: str) -> AttentionMode:
        """The attention of a budget, whatever the model was trained with."""
        ratio = self.ratios[self.labels.index(label)]
        if ratio == 1:
            return Vanilla()
        return LRSA(lag_size=length // self.lag_divisor, retention_ratio=ratio, sink_size=self.sink_size)
