"""Optional fused operators of torch_npu for RMSNorm, SwiGLU and rotary embeddings of a transformers decoder."""

import sys
from types import MethodType

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lrsa_lightning.errors import InputError


class FusedLayers(Callback):
    """Trains with torch_npu's fused layers: `trainer.callbacks: [{class_path: lrsa_lightning.npu.FusedLayers}]`."""

    def __init__(self, rms_norm: bool = True, swiglu: bool = True, rotary: bool = True):
        """
        Args:
            rms_norm: npu_rms_norm.
            swiglu: npu_swiglu in the MLPs whose activation is SiLU.
            rotary: npu_rotary_mul.
        """
        self.rms_norm, self.swiglu, self.rotary = rms_norm, swiglu, rotary

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """
        Raises:
            InputError: the run is not on NPUs.
        """
        if trainer.strategy.root_device.type != "npu":
            raise InputError("the callback FusedLayers needs accelerator npu: leave it out here")
        fuse(pl_module.model, self.rms_norm, self.swiglu, self.rotary)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the process's rotary embedding function. The model keeps its fused layers."""
        file = sys.modules[type(pl_module.model).__module__]
        if isinstance(rotary := getattr(file, "apply_rotary_pos_emb", None), _Rotary):
            file.apply_rotary_pos_emb = rotary.plain


def fuse(model: nn.Module, rms_norm: bool = True, swiglu: bool = True, rotary: bool = True) -> None:
    """Replaces the forward of a model's layers in place. Parameters and their names stay.

    The rotary embedding is a function of the model's Python module: its replacement serves all models of that module,
    and acts on NPUs only.
    """
    for module in model.modules():
        if rms_norm and type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_rms_norm, module)
        if swiglu and _is_swiglu(module, model.config):
            module.forward = MethodType(_swiglu, module)
    file = sys.modules[type(model).__module__]
    if rotary and hasattr(file, "apply_rotary_pos_emb") and not isinstance(file.apply_rotary_pos_emb, _Rotary):
        file.apply_rotary_pos_emb = _Rotary(file.apply_rotary_pos_emb)


def _is_swiglu(module: nn.Module, config) -> bool:
    return config.hidden_act == "silu" and all(hasattr(module, f"{name}_proj") for name in ("gate", "up", "down"))


def _rms_norm(self, hidden_states: Tensor) -> Tensor:
    import torch_npu

    return torch_npu.npu_rms_norm(hidden_states, self.weight.to(hidden_states.dtype), self.variance_epsilon)[0]


def _swiglu(self, x: Tensor) -> Tensor:
    import torch_npu

    return self.down_proj(torch_npu.npu_swiglu(torch.cat([self.gate_proj(x), self.up_proj(x)], dim=-1)))


class _Rotary:
    """transformers' apply_rotary_pos_emb, fused on NPUs."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if q.device.type != "npu":
            return self.plain(q, k, cos, sin, unsqueeze_dim)
        import torch_npu

        # The operator takes one dtype: the one that plain arithmetic would promote to, float32 under autocast.
        dtype = torch.promote_types(q.dtype, cos.dtype)
        cos, sin = (z.unsqueeze(unsqueeze_dim).to(dtype) for z in (cos, sin))
        return torch_npu.npu_rotary_mul(q.to(dtype), cos, sin), torch_npu.npu_rotary_mul(k.to(dtype), cos, sin)
