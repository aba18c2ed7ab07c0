"""torch_npu's own operators that the package uses, in float32 on the CPU, written from their documentation."""

import torch
from torch import Tensor

from tests.npu.standin import attention
from tests.npu.standin.operators import device, gradients, host, register


def install() -> torch.library.Library:
    """Replaces their kernels; autograd and autocast stay torch_npu's."""
    library = torch.library.Library("npu", "IMPL")
    for name, kernel in attention.kernels(host, device).items():
        register(library, name, kernel)
    pointwise = {
        "npu_rotary_mul": _rotary_mul,
        "npu_rotary_mul_backward": _differentiated(_rotary_mul, 3),
        "npu_rms_norm": _rms_norm,
        "npu_rms_norm_backward": _rms_norm_backward,
        "npu_swiglu": _swiglu,
        "npu_swiglu_backward": _differentiated(_swiglu, 1),
    }
    for name, kernel in pointwise.items():
        register(library, name, _on_device(kernel))
    return library


def _on_device(kernel):
    def run(*args, **kwargs):
        where = args[0].device
        result = kernel(*(host(z) if isinstance(z, Tensor) else z for z in args), **kwargs)
        return tuple(device(z, where) for z in result) if isinstance(result, tuple) else device(result, where)

    return run


def _differentiated(kernel, num_inputs: int):
    """The backward of a kernel: takes the gradient of its output first, then its arguments."""

    def run(grad: Tensor, *args, **kwargs):
        inputs = [z.float() for z in args[:num_inputs]]
        grads = gradients(lambda *z: kernel(*z, *args[num_inputs:], **kwargs), inputs, grad.float())
        grads = tuple(g.to(z.dtype) for g, z in zip(grads, args, strict=False))
        return grads if num_inputs > 1 else grads[0]

    return run


def _rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half", rotate=None) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos.float() + torch.cat([-second, first], dim=-1) * sin.float()).to(x.dtype)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    rstd = (x.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x.float() * rstd * gamma.float()).to(x.dtype), rstd


def _rms_norm_backward(grad: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    normalised, weighted = x.float() * rstd, grad.float() * gamma.float()
    grad_x = rstd * (weighted - normalised * (weighted * normalised).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), (grad.float() * normalised).flatten(0, -2).sum(0)


def _swiglu(x: Tensor, dim: int = -1) -> Tensor:
    gate, up = x.float().chunk(2, dim=dim)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
