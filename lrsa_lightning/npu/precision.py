"""Mixed precision on NPUs. Lightning's own would open a CUDA autocast there and compute in float32."""

from typing import Literal

from lightning.pytorch.plugins import MixedPrecision, Precision
from torch.amp import GradScaler


class NPUMixedPrecision(MixedPrecision):
    """bf16-mixed and 16-mixed under ``torch.autocast("npu")``."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], scaler: GradScaler | None = None):
        if precision == "16-mixed" and scaler is None:
            from torch_npu.npu.amp import GradScaler as NPUGradScaler

            # torch's own scaler inverts the scale in float64 and does not read the overflow flags of older chips.
            scaler = NPUGradScaler()
        super().__init__(precision, "npu", scaler)


def on_npu(plugin: Precision | None) -> Precision | None:
    """The counterpart on NPUs of a plug-in for CUDA; any other plug-in as it is."""
    if isinstance(plugin, MixedPrecision) and plugin.device == "cuda":
        return NPUMixedPrecision(plugin.precision)
    return plugin
