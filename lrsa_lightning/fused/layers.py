"""Fused operators in the layers of a transformers decoder.

A layer takes them where its own formula is the usual one. That is computed, with stand-ins for its parts: names alone
do not say whether a norm adds one to its weight.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from types import MethodType, SimpleNamespace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lrsa_lightning.errors import InputError
from lrsa_lightning.fused.operators import PLAIN, Operators, missing, operators_of, plain_rms_norm, plain_rotary
from lrsa_lightning.recompute.policies import cheap, remember

log = logging.getLogger(__name__)
FusedLayers: TypeAlias = bool | Literal["auto"]


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
    lacks = missing(device_type)
    if wanted is True and lacks:
        raise InputError(f"model.fused_layers true: {lacks}; take auto")
    found = dict.fromkeys((name for name, _, _ in _KINDS), 0)
    for module in model.modules():
        for name, is_usual, forward in _KINDS:
            if is_usual(module):
                module.forward = MethodType(partial(forward, fused=bool(wanted)), module)
                found[name] += 1
    found["rotary embedding"] = int(bool(wanted) and _set_rotary(sys.modules[type(model).__module__]))
    if wanted is True and not any(found.values()):
        raise InputError(f"model.fused_layers true: no layer of {type(model).__name__} has a fused form; take auto")
    if wanted and device_type != "cpu":
        parts = ", ".join(f"{number} x {name}" for name, number in found.items())
        log.info("fused layers on %s: %s", device_type, lacks or parts)


def _operators(x: Tensor, fused: bool) -> Operators:
    return operators_of(x.device.type) if fused else PLAIN


def _rms_norm(self, hidden_states: Tensor, fused: bool) -> Tensor:
    operators = _operators(hidden_states, fused)
    settings = {"eps": self.variance_epsilon, "saves_inputs_only": operators.are_fused}
    return cheap(operators.rms_norm, hidden_states, self.weight, **settings)


def _swiglu(self, x: Tensor, fused: bool) -> Tensor:
    operators, linears = _operators(x, fused), (self.gate_proj, self.up_proj, self.down_proj)
    if operators.mlp is not None and all(_is_plain(linear, x.dtype) for linear in linears):
        return operators.mlp(x, *(linear.weight for linear in linears))
    gate, up = self.gate_proj(x), self.up_proj(x)
    return self.down_proj(cheap(operators.swiglu, gate, up, saves_inputs_only=operators.are_fused))


def _is_plain(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a product with the weight is all that the module does. ZeRO-3 gathers weights when a module is called."""
    usual = type(linear) is nn.Linear and linear.bias is None and not hasattr(linear.weight, "ds_id")
    return usual and linear.weight.dtype == dtype and not torch.is_autocast_enabled("cuda")


def _layer(self, hidden_states: Tensor, fused: bool, **kwargs) -> Tensor:
    """Attention and MLP with their residuals. The addition between them and the norm after it are one operator."""
    attended = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
    operators, norm = _operators(hidden_states, fused), self.post_attention_layernorm
    if operators.add_rms_norm is None or attended.dtype != hidden_states.dtype or not _is_rms_norm(norm):
        hidden_states = hidden_states + attended
        normed = norm(hidden_states)
    else:
        normed, hidden_states = operators.add_rms_norm(attended, hidden_states, norm.weight, norm.variance_epsilon)
        remember(normed, operators.rms_norm, hidden_states, norm.weight, eps=norm.variance_epsilon)
    return hidden_states + self.mlp(normed)


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
        operators = operators_of(q.device.type)
        if not operators.are_fused or unsqueeze_dim != 1:
            return self.plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return operators.rotary(q, k, cos, sin)


def _is_rms_norm(module: nn.Module) -> bool:
    return hasattr(module, "variance_epsilon") and hasattr(module, "weight") and _is_usual_rms_norm(type(module))


def _is_swiglu(module: nn.Module) -> bool:
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(hasattr(module, part) for part in parts) and _is_silu(module.act_fn) and _is_usual_swiglu(type(module))


def _is_layer(module: nn.Module) -> bool:
    parts = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    return all(hasattr(module, part) for part in parts) and _is_usual_layer(type(module))


_KINDS = (
    ("RMSNorm", _is_rms_norm, _rms_norm),
    ("SwiGLU", _is_swiglu, _swiglu),
    ("residual addition with norm", _is_layer, _layer),
)


class _StandIn(SimpleNamespace):
    """A module of the given parts. transformers' layers look up the class's forward."""

    forward = None


def _is_silu(function: Callable) -> bool:
    x = _probe(7)
    return torch.equal(function(x), silu(x))


@cache
def _is_usual_rms_norm(kind: type[nn.Module]) -> bool:
    x, weight = _probe(3, 8), _probe(8)
    stub = _StandIn(weight=weight, variance_epsilon=1e-3)
    return _agrees(lambda: kind.forward(stub, x), plain_rms_norm(x, weight, 1e-3))


@cache
def _is_usual_swiglu(kind: type[nn.Module]) -> bool:
    x = _probe(3, 8)
    stub = _StandIn(gate_proj=torch.sin, up_proj=torch.cos, down_proj=torch.exp, act_fn=silu)
    return _agrees(lambda: kind.forward(stub, x), (silu(x.sin()) * x.cos()).exp())


@cache
def _is_usual_layer(kind: type[nn.Module]) -> bool:
    x = _probe(1, 3, 8)
    stub = _StandIn(
        input_layernorm=torch.sin,
        self_attn=lambda hidden_states, **_: (3 * hidden_states, None),
        post_attention_layernorm=torch.cos,
        mlp=torch.exp,
        gradient_checkpointing=False,
    )
    attended = x + 3 * x.sin()
    return _agrees(lambda: kind.forward(stub, x), attended + attended.cos().exp())


def _is_usual_rotary(function: Callable) -> bool:
    q, k, angles = _probe(1, 2, 3, 8), _probe(1, 1, 3, 8), _probe(1, 3, 4)
    cos, sin = (torch.cat([z, z], dim=-1) for z in (angles.cos(), angles.sin()))
    return _agrees(lambda: torch.cat(function(q, k, cos, sin), dim=1), torch.cat(plain_rotary(q, k, cos, sin), dim=1))


def _agrees(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        return torch.allclose(compute(), expected, rtol=1e-5, atol=1e-6)
    except Exception:  # the stand-in lacks what an unusual layer has
        return False


def _probe(*shape: int) -> Tensor:
    return torch.linspace(-2, 3, torch.Size(shape).numel(), device="cpu").reshape(shape)
