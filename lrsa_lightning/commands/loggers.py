"""The loggers of a run: which one may be missing, and which one is always there."""

import logging
from importlib.util import find_spec

from jsonargparse import Namespace
from lightning import Trainer

from lrsa_lightning.callbacks import MetricsFile, WandbLogger
from lrsa_lightning.callbacks.metrics_file import metrics_files

log = logging.getLogger(__name__)


def without_missing_wandb(trainer: Namespace) -> None:
    """Removes our W&B logger, which the base configuration names, where wandb is not installed.

    Args:
        trainer: the trainer's part of a parsed configuration.
    """
    if find_spec("wandb") is None and leave_out_wandb(trainer):
        log.warning("wandb is not installed: this run does not log to Weights & Biases (pip install wandb)")


def leave_out_wandb(trainer: Namespace) -> bool:
    """Removes W&B's loggers, ours and Lightning's. Returns whether there were some. Argument as above."""
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    kept = [logger for logger in given if getattr(logger, "class_path", "").rpartition(".")[2] != WandbLogger.__name__]
    if len(kept) < len(given):
        trainer.logger = kept or False
    return len(kept) < len(given)


def add_metrics_file(trainer: Trainer) -> None:
    """Adds the metrics file, from which loss curve and reports are drawn, to loggers that lack it."""
    if trainer.loggers and not metrics_files(trainer.loggers):
        trainer.loggers = [*trainer.loggers, MetricsFile(trainer.default_root_dir)]
