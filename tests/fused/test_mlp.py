"""The MLP's own backward against autograd's, on CPU tensors under Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from tests.attention.test_kernels import interpreted

__all__ = ["interpreted"]  # a fixture
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux)")


def fused(inputs: list[Tensor], gradient: Tensor, twice: bool = False) -> list[Tensor] | str:
    from lrsa_lightning.fused.mlp import swiglu_mlp

    inputs = [z.requires_grad_() for z in inputs]
    out = swiglu_mlp(*inputs)
    found = [out.detach(), *torch.autograd.grad(out, inputs, gradient, retain_graph=twice)]
    if twice:
        try:
            torch.autograd.grad(out, inputs, gradient)
        except RuntimeError as error:
            return str(error)
    return found


def plain(inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    x, gate, up, down = inputs = [z.double().requires_grad_() for z in inputs]
    out = linear(silu(linear(x, gate)) * linear(x, up), down)
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient.double())]


def tensors(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """More activations than a block of the kernels has, and not a multiple of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 27, 16), (44, 16), (44, 16), (16, 44), (2, 27, 16)
    *inputs, gradient = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return inputs, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_output_and_gradients(interpreted, dtype, tolerance):
    inputs, gradient = tensors(dtype)
    for got, expected in zip(interpreted(fused, inputs, gradient), plain(inputs, gradient), strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).norm() <= tolerance * expected.norm()


def test_a_second_backward_is_refused(interpreted):
    assert "backward runs once" in interpreted(fused, *tensors(torch.float32), True)
