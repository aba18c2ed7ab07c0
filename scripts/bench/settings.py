"""What all rows of a bench have in common."""

from dataclasses import dataclass

import torch

from bench.clock import StepClock
from bench.inputs import Inputs


@dataclass(frozen=True)
class Settings:
    """Sizes and numbers of steps.

    Attributes:
        inputs: files of model and data.
        global_batch: rows of an optimizer step.
        micro_batch: rows of a forward pass.
        warmup: steps before the measured ones.
        steps: measured steps.
        profiled: steps after them, under the profiler.
        passed: further options of `lrsa fit`.
    """

    inputs: Inputs
    global_batch: int
    micro_batch: int
    warmup: int
    steps: int
    profiled: int
    passed: tuple[str, ...] = ()

    def clock(self, device: torch.device) -> StepClock:
        return StepClock(device, self.warmup, self.steps, self.profiled)
