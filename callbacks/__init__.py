"""Callbacks and loggers, installed as `lrsa_lightning.callbacks`."""

from lrsa_lightning.callbacks.loss_curve import LossCurve
from lrsa_lightning.callbacks.metrics_file import MetricsFile
from lrsa_lightning.callbacks.progress import StepProgress
from lrsa_lightning.callbacks.ruler_eval import RulerEval
from lrsa_lightning.callbacks.save_config import SaveConfig

__all__ = ["LossCurve", "MetricsFile", "RulerEval", "SaveConfig", "StepProgress"]
