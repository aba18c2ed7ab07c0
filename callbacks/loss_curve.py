"""The loss curve as a picture in the run directory."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.metrics_file import MetricsFile, read_metric


class LossCurve(Callback):
    """Draws the training loss, raw and smoothed, from the metrics file when training ends."""

    def __init__(self, filename: str = "loss_curve.png", smoothing: float = 0.9):
        """
        Args:
            filename: of the picture, in the run directory.
            smoothing: weight of the past in the exponential average.
        """
        self.filename = filename
        self.smoothing = smoothing

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if (metrics := _metrics_file(trainer)) is not None:
            metrics.forget_after(checkpoint["global_step"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = _metrics_file(trainer)
        if trainer.is_global_zero and metrics is not None and metrics.path.exists():
            steps, losses = read_metric(metrics.path, "train/loss")
            self._draw(steps, losses, Path(trainer.default_root_dir) / self.filename)

    def _draw(self, steps: list[int], losses: list[float], path: Path) -> None:
        from matplotlib.figure import Figure

        axes = (figure := Figure(figsize=(8, 4.5), layout="constrained")).subplots()
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="train/loss")
        axes.plot(steps, smooth(losses, self.smoothing), color="tab:blue", label=f"smoothed ({self.smoothing:g})")
        axes.set(xlabel="optimizer step", ylabel="loss per answer token", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


def _metrics_file(trainer: Trainer) -> MetricsFile | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, MetricsFile)), None)


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, average, norm = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        smoothed.append(average / norm)
    return smoothed
