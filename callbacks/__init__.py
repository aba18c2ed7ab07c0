"""Callbacks and loggers, installed as `lrsa_lightning.callbacks`."""

from lrsa_lightning.callbacks.checkpoints import Checkpoints
from lrsa_lightning.callbacks.diagnosis import Diagnosis
from lrsa_lightning.callbacks.end_together import EndTogether
from lrsa_lightning.callbacks.loss_curve import LossCurve
from lrsa_lightning.callbacks.metrics_file import MetricsFile
from lrsa_lightning.callbacks.non_finite_loss import NonFiniteLoss
from lrsa_lightning.callbacks.out_of_memory import OutOfMemoryAdvice
from lrsa_lightning.callbacks.progress import StepProgress
from lrsa_lightning.callbacks.resumed_history import ResumedHistory
from lrsa_lightning.callbacks.ruler_eval import RulerEval
from lrsa_lightning.callbacks.run_begins import RunBegins
from lrsa_lightning.callbacks.save_config import SaveConfig
from lrsa_lightning.callbacks.stop_on_signal import StopOnSignal
from lrsa_lightning.callbacks.throughput import Throughput
from lrsa_lightning.callbacks.wandb_logger import WandbLogger

__all__ = [
    "Checkpoints",
    "Diagnosis",
    "EndTogether",
    "LossCurve",
    "MetricsFile",
    "NonFiniteLoss",
    "OutOfMemoryAdvice",
    "ResumedHistory",
    "RulerEval",
    "RunBegins",
    "SaveConfig",
    "StepProgress",
    "StopOnSignal",
    "Throughput",
    "WandbLogger",
]
