"""Precision on NPUs. Lightning's mixed precision opens an autocast for CUDA there, and computes in float32."""

from typing import Literal

from lightning.pytorch.plugins import MixedPrecision, Precision
from torch.amp import GradScaler


class NPUMixedPrecision(MixedPrecision):
    """bf16-mixed and 16-mixed under ``torch.autocast("npu")``."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], scaler: GradScaler | None = None):
        if precision == "16-mixed" and scaler is None:
            from torch_npu.npu.amp import GradScaler as NPUGradScaler

            # torch's own inverts the scale in float64, and does not read the overflow flags of older chips.
            scaler = NPUGradScaler()
        super().__init__(precision, "npu", scaler)

    def clip_gradients(self, optimizer, clip_val=0.0, gradient_clip_algorithm="norm") -> None:
        """Clips for fused optimizers too, which Lightning refuses: without a scaler there is nothing to unscale."""
        clip = super().clip_gradients if self.scaler is not None else super(MixedPrecision, self).clip_gradients
        clip(optimizer, clip_val, gradient_clip_algorithm)


def on_npu(plugin: Precision | None) -> Precision | None:
    """The plug-in that does on an NPU what the given one would do on CUDA; others know no device and stay."""
    if isinstance(plugin, MixedPrecision) and plugin.device == "cuda":
        return NPUMixedPrecision(plugin.precision)
    return plugin
