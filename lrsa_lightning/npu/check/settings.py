"""What the items of the check are told, and how they say that something is wrong."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


class Failed(AssertionError):
    """A number is out of its bounds."""


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        devices: NPUs to use.
        folder: for runs and data of the check.
        small: sizes for a machine without hardware, where the time and the memory mean nothing.
    """

    devices: int
    folder: Path
    small: bool = False

    def size(self, full: int, small: int) -> int:
        return small if self.small else full


def error_of(what: str, got: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference, as a share of the largest expected value.

    Raises:
        Failed: it is above ``tolerance``, or not a number.
    """
    expected = expected.float()
    error = ((got.float().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= tolerance:
        raise Failed(f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}")
    return error


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that bfloat16 can hold, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
