"""What changes the weights: the optimizer of a run by name, its learning rate and the clipping of its gradients."""

from lrsa_lightning.optimizer.schedule import ScheduleSettings
from lrsa_lightning.optimizer.settings import OptimizerSettings

__all__ = ["OptimizerSettings", "ScheduleSettings"]
