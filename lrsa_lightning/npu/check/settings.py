"""The settings of the check's items, and their comparisons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BF16 = 2e-2
"""Relative error that bfloat16 explains."""


class Failed(AssertionError):
    """A number lies outside its bounds."""


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        devices: number of NPUs.
        folder: for runs and data of the check.
        small: takes small sizes for a machine without hardware. Time and memory mean nothing there.
    """

    devices: int
    folder: Path
    small: bool = False

    def size(self, full: int, small: int) -> int:
        return small if self.small else full


def error_of(what: str, got: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference relative to the largest expected value.

    Raises:
        Failed: the error is above ``tolerance``, or NaN.
    """
    expected = expected.float()
    error = ((got.float().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= tolerance:
        raise Failed(f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}")
    return error


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that bfloat16 represents exactly: float32, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def on_npu(*tensors: Tensor) -> list[Tensor]:
    return [z.to("npu", torch.bfloat16) for z in tensors]


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output of a function and the gradients of its inputs, under a fixed random gradient of the output."""
    inputs = [z.detach().requires_grad_() for z in inputs]
    out = function(*inputs)
    weights = random(*out.shape, seed=4).to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]
