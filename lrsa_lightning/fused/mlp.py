"""SwiGLU's MLP as one autograd function: silu(x Wg') * (x Wu') Wd'.

It never keeps the product of the activations. The kernel that computes the gradients of gate and up in the backward
reads all that the product is made of, so it writes the product too.

Shape suffixes: T tokens, D hidden size, F intermediate size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

_BLOCK = 1024


def swiglu_mlp(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """The MLP of x [..., D], on a CUDA device, in the dtype of all four tensors."""
    return _SwiGLU.apply(x, gate_FD, up_FD, down_DF)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        gate, up = linear(x, gate_FD), linear(x, up_FD)
        ctx.save_for_backward(x, gate, up, gate_FD, up_FD, down_DF)
        ctx.is_used = False
        product = torch.empty_like(gate)
        _product_kernel[_grid(gate)](gate, up, product, gate.numel(), BLOCK=_BLOCK)
        return linear(product, down_DF)

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        if ctx.is_used:
            raise RuntimeError("the MLP's backward runs once: it writes gradients over the activations it has kept")
        ctx.is_used = True
        x, gate, up, gate_FD, up_FD, down_DF = ctx.saved_tensors
        grad_TD, x_TD = grad_out.flatten(0, -2), x.flatten(0, -2)
        product_TF = grad_TD @ down_DF  # at first the gradient of the product
        gate_TF, up_TF = gate.flatten(0, -2), up.flatten(0, -2)
        _gradient_kernel[_grid(gate)](product_TF, gate_TF, up_TF, gate.numel(), BLOCK=_BLOCK)
        needs = ctx.needs_input_grad
        grad_x = torch.addmm(gate_TF @ gate_FD, up_TF, up_FD).view_as(x) if needs[0] else None
        grad_gate = gate_TF.T @ x_TD if needs[1] else None
        grad_up = up_TF.T @ x_TD if needs[2] else None
        grad_down = grad_TD.T @ product_TF if needs[3] else None
        return grad_x, grad_gate, grad_up, grad_down


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _BLOCK),)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """As the plain MLP rounds silu(gate), in float32 again."""
    return x.to(dtype).to(tl.float32)


@triton.jit
def _product_kernel(gate_ptr, up_ptr, product_ptr, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    gate = tl.load(gate_ptr + offsets, inside).to(tl.float32)
    up = tl.load(up_ptr + offsets, inside)
    silu = gate * tl.sigmoid(gate)
    tl.store(product_ptr + offsets, _rounded(silu, up.dtype) * up.to(tl.float32), inside)


@triton.jit
def _gradient_kernel(product_ptr, gate_ptr, up_ptr, count, BLOCK: tl.constexpr):
    """Reads the gradient of the product, gate and up; writes the product and the gradients of gate and up there."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    grad = tl.load(product_ptr + offsets, inside).to(tl.float32)
    gate = tl.load(gate_ptr + offsets, inside).to(tl.float32)
    loaded = tl.load(up_ptr + offsets, inside)
    up = loaded.to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(product_ptr + offsets, _rounded(silu, loaded.dtype) * up, inside)
    tl.store(gate_ptr + offsets, grad * up * (sigmoid + silu * (1 - sigmoid)), inside)
    tl.store(up_ptr + offsets, grad * silu, inside)
