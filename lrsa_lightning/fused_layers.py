"""RMSNorm, SwiGLU and rotary embeddings of a transformers decoder by fused operators: Liger's on CUDA, torch_npu's on NPU.

A layer takes them where its own formula is the usual one; this is computed, not guessed from names.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from types import MethodType, SimpleNamespace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lrsa_lightning.errors import InputError
from lrsa_lightning.recompute import cheap

log = logging.getLogger(__name__)
FusedLayers: TypeAlias = bool | Literal["auto"]


class Operators(NamedTuple):
    """The operators of one device.

    Attributes:
        rms_norm: of x [..., D], weight [D] and eps.
        swiglu: silu(gate) * up.
        rotary: of queries [B, H, N, D], keys [B, G, N, D], cos and sin [B, N, D].
        are_fused: whether their backward needs their inputs alone.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    are_fused: bool = True


def fuse(model: nn.Module, wanted: FusedLayers, device_type: str) -> None:
    """Replaces the forward of a model's layers in place. Parameters and their names stay.

    The operators follow the device of their tensors: on a CPU they are plain. The rotary embedding is a function of the
    model's Python module, so its replacement serves all models of that module.

    Args:
        model: a transformers decoder.
        wanted: auto takes fused operators where they exist; True demands them; False takes plain ones.
        device_type: of the run.

    Raises:
        InputError: fused operators are demanded, but the device, the packages or the model do not have them.
    """
    missing = _missing(device_type)
    if wanted is True and missing:
        raise InputError(f"model.fused_layers true: {missing}; take auto")
    found = {"RMSNorm": 0, "SwiGLU": 0}
    for module in model.modules():
        if _is_rms_norm(module):
            module.forward = MethodType(partial(_rms_norm, fused=bool(wanted)), module)
            found["RMSNorm"] += 1
        elif _is_swiglu(module):
            module.forward = MethodType(partial(_swiglu, fused=bool(wanted)), module)
            found["SwiGLU"] += 1
    file = sys.modules[type(model).__module__]
    found["rotary"] = int(bool(wanted) and _set_rotary(file))
    if wanted is True and not any(found.values()):
        raise InputError(f"model.fused_layers true: no layer of {type(model).__name__} has a fused form; take auto")
    if wanted and not missing and device_type != "cpu":
        log.info("fused layers on %s: %s", device_type, ", ".join(f"{n} {name}" for name, n in found.items()))
    elif wanted and missing and device_type != "cpu":
        log.warning("no fused layers: %s", missing)


def _missing(device_type: str) -> str:
    """Why a device has no fused operators; empty where it has them."""
    if device_type == "cuda" and find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed (pip install 'lrsa-lightning[cuda]')"
    return "" if device_type in ("cuda", "npu") else f"there are none for {device_type}"


def _operators(x: Tensor, fused: bool) -> Operators:
    return _of_device(x.device.type) if fused else _PLAIN


@cache
def _of_device(device_type: str) -> Operators:
    if _missing(device_type):
        return _PLAIN
    return _liger() if device_type == "cuda" else _npu()


def _rms_norm(self, hidden_states: Tensor, fused: bool) -> Tensor:
    operators = _operators(hidden_states, fused)
    settings = {"eps": self.variance_epsilon, "saves_inputs_only": operators.are_fused}
    return cheap(operators.rms_norm, hidden_states, self.weight, **settings)


def _swiglu(self, x: Tensor, fused: bool) -> Tensor:
    operators = _operators(x, fused)
    gate, up = self.gate_proj(x), self.up_proj(x)
    return self.down_proj(cheap(operators.swiglu, gate, up, saves_inputs_only=operators.are_fused))


def _set_rotary(file: Any) -> bool:
    """Replaces the rotary embedding of a Python module, if it is the usual one."""
    given = getattr(file, "apply_rotary_pos_emb", None)
    if isinstance(given, _Rotary):
        return True
    if given is None or not _is_usual_rotary(given):
        return False
    file.apply_rotary_pos_emb = _Rotary(given)
    return True


class _Rotary:
    """transformers' apply_rotary_pos_emb, fused where the device has it."""

    def __init__(self, plain: Callable):
        self.plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        operators = _of_device(q.device.type)
        if not operators.are_fused or unsqueeze_dim != 1:
            return self.plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return operators.rotary(q, k, cos, sin)


def _is_rms_norm(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named and _is_usual_rms_norm(type(module))


def _is_swiglu(module: nn.Module) -> bool:
    named = all(hasattr(module, f"{name}_proj") for name in ("gate", "up", "down")) and hasattr(module, "act_fn")
    return named and _is_silu(module.act_fn) and _is_usual_swiglu(type(module))


def _is_silu(function: Callable) -> bool:
    x = _probe(7)
    return torch.equal(function(x), silu(x))


@cache
def _is_usual_rms_norm(kind: type[nn.Module]) -> bool:
    x, weight = _probe(3, 8), _probe(8)
    stub = SimpleNamespace(weight=weight, variance_epsilon=1e-3)
    return _agrees(lambda: kind.forward(stub, x), _plain_rms_norm(x, weight, 1e-3))


@cache
def _is_usual_swiglu(kind: type[nn.Module]) -> bool:
    x = _probe(3, 8)
    stub = SimpleNamespace(gate_proj=torch.sin, up_proj=torch.cos, down_proj=torch.exp, act_fn=silu)
    return _agrees(lambda: kind.forward(stub, x), (silu(x.sin()) * x.cos()).exp())


def _is_usual_rotary(function: Callable) -> bool:
    q, k, angles = _probe(1, 2, 3, 8), _probe(1, 1, 3, 8), _probe(1, 3, 4)
    cos, sin = (torch.cat([z, z], dim=-1) for z in (angles.cos(), angles.sin()))
    return _agrees(lambda: torch.cat(function(q, k, cos, sin), dim=1), torch.cat(_plain_rotary(q, k, cos, sin), dim=1))


def _agrees(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        return torch.allclose(compute(), expected, rtol=1e-5, atol=1e-6)
    except Exception:  # the stub lacks what an unusual layer has
        return False


def _probe(*shape: int) -> Tensor:
    return torch.linspace(-2, 3, torch.Size(shape).numel(), device="cpu").reshape(shape)


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As transformers computes it: the statistics in float32, the product in x's dtype."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def _plain_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)

    return turn(q), turn(k)


_PLAIN = Operators(_plain_rms_norm, _plain_swiglu, _plain_rotary, are_fused=False)


def _liger() -> Operators:
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction, LigerSiLUMulFunction

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Under autocast the result of a layer may be float32: the weight follows.
        return LigerRMSNormFunction.apply(x, weight.to(x.dtype), eps, 0.0, "llama", True)

    return Operators(rms_norm, LigerSiLUMulFunction.apply, LigerRopeFunction.apply)


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
