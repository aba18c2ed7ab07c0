"""A mode whose attention differs from step to step; `retention.py` says which step has which retention ratio."""

import copy

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.retention import Retention


class RatioInUse:
    """Which ratio the installed attention has now. The copies of a mode for a length or for heads share one.

    Attributes:
        place: of the ratio.
    """

    def __init__(self, place: int):
        self.place = place


class ElasticMode(AttentionMode):
    """A mode with one retention ratio, or with a list of them: then each optimizer step has one."""

    def __init__(self, retention: Retention, is_elastic: bool):
        """
        Args:
            retention: its ratios.
            is_elastic: whether they come from a list.
        """
        self._retention = retention
        self._in_use = RatioInUse(retention.serving) if is_elastic else None

    @property
    def needs_total_steps(self) -> bool:
        return self._retention.schedule == "curriculum"

    @property
    def _place(self) -> int:
        """Of the ratio that the attention has now."""
        return 0 if self._in_use is None else self._in_use.place

    def begin_step(self, step: int, total_steps: float, seed: int) -> "ElasticMode":
        if self._in_use is None:
            return self
        self._in_use.place = self._retention.place(step, total_steps, seed)
        return self._with_ratio(self._in_use.place)

    def end_step(self) -> None:
        if self._in_use is not None:
            self._in_use.place = self._retention.serving

    def step_metrics(self) -> dict[str, float]:
        return {} if self._in_use is None else {"train/retention_ratio": self._retention.ratios[self._place]}

    def phases(self) -> list[tuple[AttentionMode, float]]:
        if self._in_use is None:
            return super().phases()
        return [(self._with_ratio(place), float(part)) for place, part in enumerate(self._retention.fractions)]

    def _with_ratio(self, place: int) -> "ElasticMode":
        """The mode with one of its ratios for good, whatever ratio this one takes."""
        mode = copy.copy(self)
        mode._in_use = RatioInUse(place)
        return mode
