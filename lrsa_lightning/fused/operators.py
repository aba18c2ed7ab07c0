"""The element-wise operators of a decoder layer, for each kind of device.

Shape suffixes: B rows, N tokens, D hidden size, F intermediate size, H query heads, G KV heads, K head size.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu


class Operators(NamedTuple):
    """The operators of one kind of device.

    Attributes:
        rms_norm: of x [..., D], weight [D] and eps.
        swiglu: silu(gate) * up.
        rotary: of queries [B, H, N, K], keys [B, G, N, K], cos and sin [B, N, K].
        add_rms_norm: of x, residual, weight and eps: the norm of x + residual, and x + residual; None without one.
        mlp: of x [..., D] and the weights of gate, up and down: the complete SwiGLU; None without one.
        are_fused: whether the operators' backward needs their inputs alone.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None
    mlp: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    are_fused: bool = True


def missing(device_type: str) -> str:
    """Why a device has no fused operators; empty where it has them."""
    if device_type == "cuda" and find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed (pip install 'lrsa-lightning[cuda]')"
    return "" if device_type in ("cuda", "npu") else f"there are none for {device_type}"


def has_fused_mlp(device_type: str) -> bool:
    """Whether the MLP never keeps SwiGLU's product."""
    return operators_of(device_type).mlp is not None


@cache
def operators_of(device_type: str) -> Operators:
    """The fused operators of a device; plain ones where it has none."""
    if missing(device_type):
        return PLAIN
    return _cuda() if device_type == "cuda" else _npu()


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As transformers computes it: the statistics in float32, the product in x's dtype."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def plain_rotary(q_BHNK: Tensor, k_BGNK: Tensor, cos_BNK: Tensor, sin_BNK: Tensor) -> tuple[Tensor, Tensor]:
    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos_BNK.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin_BNK.unsqueeze(1)

    return turn(q_BHNK), turn(k_BGNK)


PLAIN = Operators(plain_rms_norm, plain_swiglu, plain_rotary, are_fused=False)


def _cuda() -> Operators:
    """Liger's, and the norms of quack, a part of flash-attn-4: their backward takes half of the time of Liger's."""
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction

    from lrsa_lightning.fused.mlp import swiglu_mlp

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Under autocast the result of a layer may be float32: the weight follows.
        return LigerRMSNormFunction.apply(x, weight.to(x.dtype), eps, 0.0, "llama", True)

    own = Operators(rms_norm, LigerSiLUMulFunction.apply, LigerRopeFunction.apply, mlp=swiglu_mlp)
    return own if find_spec("quack") is None else own._replace(rms_norm=_quack_norm, add_rms_norm=_quack_add_norm)


def _quack_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from quack.rmsnorm import rmsnorm

    return rmsnorm(x, weight.to(x.dtype), eps=eps)


def _quack_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from quack.rmsnorm import rmsnorm

    return rmsnorm(x, weight.to(x.dtype), residual=residual, eps=eps, prenorm=True)


def _npu() -> Operators:
    import torch_npu

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch_npu.npu_rms_norm(x, weight.to(x.dtype), eps)[0]

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return torch_npu.npu_swiglu(torch.cat([gate, up], dim=-1))

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        # The operator takes one dtype: the one that plain arithmetic would promote to, float32 under autocast.
        dtype = torch.promote_types(q.dtype, cos.dtype)
        cos, sin = (z.unsqueeze(1).to(dtype) for z in (cos, sin))
        return torch_npu.npu_rotary_mul(q.to(dtype), cos, sin), torch_npu.npu_rotary_mul(k.to(dtype), cos, sin)

    return Operators(rms_norm, swiglu, rotary)
