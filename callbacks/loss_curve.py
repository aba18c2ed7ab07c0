"""The loss curve, with gradient norm, learning rate and tokens, as a picture in the run directory and the loggers."""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.metrics_file import metrics_files
from lrsa_lightning.callbacks.pictures import log_picture
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.metrics import METRICS, Row, points, read_rows, smooth
from lrsa_lightning.plots import limits, literal
from lrsa_lightning.ranges import DecayRate, PositiveInt, checked
from lrsa_lightning.step_log import write_steps

# Largest fraction of the training time that drawing may take. The first picture is assumed to take a second.
_TIME_FRACTION = 0.02
_OWN, _REFERENCE = "tab:blue", "tab:orange"


class LossCurve(Callback):
    """Draws loss, gradient norm, learning rate and tokens from the metrics file, while training runs.

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
        write_steps(trainer, before=step - 1)  # on all ranks, which read at the same steps
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
                    log_picture(logger, "loss_curve", folder / self.filename, trainer.global_step - 1)
        self._longest = monotonic() - started
        self._drawing_seconds += self._longest


def draw_curves(runs: dict[str, Sequence[Row]], path: Path, smoothing: float) -> bool:
    """Draws the metrics of a run, the first one, and of a reference where there is one.

    Returns:
        False where no run has a training loss: nothing was drawn.
    """
    from matplotlib.figure import Figure

    if not any("train/loss" in row for rows in runs.values() for row in rows):
        return False
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["loss", "norm"], ["loss", "rate"], ["loss", "tokens"]], width_ratios=[2.2, 1], sharex=True
    )
    # The run itself is drawn last, above the reference.
    for (name, rows), colour in reversed([*zip(runs.items(), (_OWN, _REFERENCE), strict=False)]):
        _draw_losses(axes["loss"], rows, smoothing, literal(name), colour)
        for panel, key in (("norm", "train/grad_norm"), ("rate", "train/lr"), ("tokens", "train/tokens")):
            axes[panel].plot(*points(rows, key), color=colour, linewidth=1)
    smoothed = axes["loss"].get_legend_handles_labels()[0]  # raw losses have no label
    axes["loss"].set(xlabel="optimizer step", ylabel="training loss", ylim=limits(smoothed, 0.1))
    axes["loss"].set_title(f"raw, and smoothed ({smoothing:g})", fontsize=9, loc="left")
    axes["loss"].legend(frameon=False, fontsize=9)
    _style(axes)
    _save(figure, path)
    return True


def _style(axes: dict) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes["norm"].set(title="gradient norm, before clipping", yscale="log")
    axes["rate"].set(title="learning rate")
    axes["tokens"].set(title="tokens seen", xlabel="optimizer step")
    axes["norm"].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes["norm"].yaxis.set_major_formatter("{x:g}")
    axes["norm"].yaxis.set_minor_formatter(NullFormatter())
    axes["tokens"].yaxis.set_major_formatter(EngFormatter(sep=""))
    for name, panel in axes.items():
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if name != "loss":
            panel.title.set_size(9)
            panel.tick_params(labelsize=8)


def _save(figure, path: Path) -> None:
    """Writes beside the picture, then replaces it: a reader never sees half a file."""
    beside = path.with_name(f".{path.name}")
    try:
        figure.savefig(beside, dpi=120, format="png")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _draw_losses(axes, rows: Sequence[Row], smoothing: float, name: str, colour: str) -> None:
    steps, losses = points(rows, "train/loss")
    by_token = points(rows, "train/answer_loss")
    weighs_samples = by_token[1] not in ([], losses)
    axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    label = f"{name}: per {'sample' if weighs_samples else 'label tokens'}"
    axes.plot(steps, smooth(losses, smoothing), color=colour, label=label)
    if weighs_samples:
        smoothed = smooth(by_token[1], smoothing)
        axes.plot(by_token[0], smoothed, color=colour, linestyle="--", label=f"{name}: per label tokens")


def _metrics_path(reference: str) -> Path:
    path = Path(reference)
    return path / METRICS if path.is_dir() else path
