"""The loss curve as a picture in the run directory and the loggers, while training runs."""

from pathlib import Path
from time import monotonic

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.curves import draw_curves
from lrsa_lightning.callbacks.metrics_file import metrics_files
from lrsa_lightning.callbacks.pictures import log_picture
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.metrics import METRICS, read_rows
from lrsa_lightning.ranges import DecayRate, PositiveInt, checked
from lrsa_lightning.step_log import write_steps

# Largest fraction of the training time that drawing may take. The first picture is assumed to take a second.
_TIME_FRACTION = 0.02


class LossCurve(Callback):
    """Draws losses, RULER, gradient norm, learning rate and tokens from the metrics file, while training runs.

    A second run can be drawn as a reference: LRSA and Vanilla in one picture, as in the paper's figure 2.
    """

    @checked
    def __init__(
        self,
        filename: str = "loss_curve.png",
        smoothing: DecayRate = 0.9,
        every_n_steps: PositiveInt = 100,
        reference: str | None = None,
    ):
        """
        Args:
            filename: of the picture, in the run directory.
            smoothing: weight of the past in the exponential average.
            every_n_steps: optimizer steps between two pictures. Pictures are skipped where drawing would take more than
                2% of the time. The last picture is drawn at the end.
            reference: run directory of a run to compare with, or its metrics.jsonl.

        Raises:
            InputError: the filename is not the name of a PNG file without a folder.
        """
        if Path(filename).name != filename or Path(filename).suffix != ".png":
            raise InputError(f"LossCurve.filename is {filename!r}, but must be a name such as loss_curve.png")
        self.filename = filename
        self.smoothing = smoothing
        self.every_n_steps = every_n_steps
        self.reference = reference
        self._due_step = 0
        self._drawing_seconds = 0.0
        self._longest = 1.0
        self._started = 0.0
        self._effort = BestEffort(filename)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the reference before training starts.

        Raises:
            InputError: the reference holds no training loss.
        """
        if self.reference is not None and stage == "fit":
            file = _metrics_path(self.reference)
            if not file.is_file() or not any("train/loss" in row for row in read_rows(file)):
                raise InputError(
                    f"LossCurve.reference {self.reference} holds no train/loss: give a run directory of `lrsa fit` or "
                    "its metrics.jsonl"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due_step, self._started = trainer.global_step, monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._due_step:
            return
        self._due_step = step
        write_steps(trainer, last=step - 1)  # on all ranks, which read at the same steps
        if self._has_time():
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    def _has_time(self) -> bool:
        return self._drawing_seconds + self._longest <= _TIME_FRACTION * (monotonic() - self._started)

    def _draw(self, trainer: Trainer) -> None:
        files = metrics_files(trainer.loggers)
        if not trainer.is_global_zero or not files:
            return
        started = monotonic()
        with self._effort.attempt():
            folder = Path(trainer.default_root_dir)
            runs = {folder.resolve().name: files[0].rows()}
            if self.reference is not None:
                path = _metrics_path(self.reference).resolve()
                runs[f"{path.parent.name} (reference)"] = read_rows(path)
            if draw_curves(runs, folder / self.filename, self.smoothing):
                for logger in trainer.loggers:
                    log_picture(logger, "loss_curve", folder / self.filename, trainer.global_step)
        self._longest = monotonic() - started
        self._drawing_seconds += self._longest


def _metrics_path(reference: str) -> Path:
    path = Path(reference)
    return path / METRICS if path.is_dir() else path
