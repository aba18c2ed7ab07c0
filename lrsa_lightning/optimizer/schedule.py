"""The learning rate over a run: a linear warm-up, then one of four shapes."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import ClosedUnitInterval, NonNegativeFiniteFloat, PositiveCountOrFraction, checked

_warn = rank_zero_only(logging.getLogger(__name__).warning)


@checked
@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate after the warm-up of `model.warmup_steps`.

    transformers has these shapes, too. Its warm-up begins with a step of learning rate 0; ours has none.

    Attributes:
        name: cosine and linear fall to the least learning rate at the end of the run. constant stays at model.lr. wsd
            (warm-up, stable, decay) stays there, and falls linearly in its last steps.
        min_lr: the least learning rate.
        min_lr_rate: the same as a fraction of model.lr; give one of the two.
        decay_steps: of wsd alone: its last steps, or a fraction of the steps after the warm-up.
    """

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    min_lr: NonNegativeFiniteFloat = 0.0
    min_lr_rate: ClosedUnitInterval = 0.0
    decay_steps: PositiveCountOrFraction = 0.1

    def check(self, lr: float) -> None:
        """
        Raises:
            InputError: the settings contradict each other or the peak learning rate.
        """
        if self.min_lr and self.min_lr_rate:
            raise InputError(
                f"model.scheduler has min_lr {self.min_lr} and min_lr_rate {self.min_lr_rate}: give one of them"
            )
        if self.min_lr > lr:
            raise InputError(f"model.scheduler.min_lr {self.min_lr} is above model.lr {lr}, its peak: lower it")
        if self.name == "constant" and (self.min_lr or self.min_lr_rate):
            raise InputError("model.scheduler constant never falls: leave min_lr and min_lr_rate out, or take linear")

    def factor(self, lr: float, warmup_steps: int, total_steps: float) -> Callable[[int], float]:
        """The factor of the peak learning rate for an optimizer step, given its number from 0.

        Args:
            lr: the peak.
            warmup_steps: W; step i of the warm-up has (i + 1) / W of the peak.
            total_steps: steps of the run; infinity where only a time or a signal ends it. Step total_steps would have
                the least learning rate.
        """
        if self.name != "constant":
            _warn_of_no_fall(warmup_steps, total_steps)
        least = max(self.min_lr_rate, self.min_lr / lr)
        left = max(1, total_steps - warmup_steps)
        shape = self._shape(left)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            return least + (1 - least) * shape(min(1.0, (step - warmup_steps) / left))

        return factor

    def _shape(self, left: float) -> Callable[[float], float]:
        """From 1 to 0 over the part of the run after the warm-up, which has so many steps."""
        if self.name == "wsd":
            decay = self.decay_steps if isinstance(self.decay_steps, float) else min(1.0, self.decay_steps / left)
            return lambda progress: min(1.0, (1 - progress) / decay) if decay else 1.0
        return {
            "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": lambda progress: 1 - progress,
            "constant": lambda progress: 1.0,
        }[self.name]


def _warn_of_no_fall(warmup_steps: int, total_steps: float) -> None:
    if math.isinf(total_steps):
        _warn("the run has no number of steps: model.lr stays at its peak, set trainer.max_steps to let it fall")
    elif 0 < total_steps <= warmup_steps:
        _warn("model.warmup_steps %d: the run ends after %d, before model.lr falls", warmup_steps, total_steps)
