"""The learning rate over a run: linear warm-up, then cosine to 0."""

import logging
import math
from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_only

_warn = rank_zero_only(logging.getLogger(__name__).warning)


def warmup_cosine(warmup_steps: int, total_steps: float) -> Callable[[int], float]:
    """The factor of the peak learning rate for the optimizer step with a given number, from 0.

    Args:
        warmup_steps: W; step i before them has (i + 1) / W of the peak.
        total_steps: of the run, infinity where only a time or a signal ends it; the first step not taken has 0.
    """
    if math.isinf(total_steps):
        _warn("the run has no number of steps: model.lr stays at its peak, set trainer.max_steps to let it fall")
    elif 0 < total_steps <= warmup_steps:
        _warn("model.warmup_steps %d: the run ends after %d, before model.lr falls", warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
