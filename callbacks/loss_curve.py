"""The loss curve, and what it is read with, as a picture in the run directory and in Weights & Biases."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.metrics_file import metrics_files, points, read_rows
from lrsa_lightning.disk import BestEffort
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import DecayRate, PositiveInt, checked

# Of the training time, at most, that pictures may take; the first is assumed to take a second.
_SHARE = 0.02
_OWN, _REFERENCE = "tab:blue", "tab:orange"

Row = dict[str, float]


class LossCurve(Callback):
    """Draws loss, gradient norm, learning rate and tokens seen, from the metrics file, as training goes on.

    A reference run is drawn over it: LRSA against Vanilla is one picture, as in the paper's figure 2.
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
            every_n_steps: optimizer steps between two pictures while training runs, or more, so that drawing never
                takes over 2% of the time; there is one at the end in any case.
            reference: run directory, or its metrics.jsonl, of a run to compare with.

        Raises:
            InputError: the filename is none of a picture in the run directory.
        """
        if Path(filename).name != filename or Path(filename).suffix != ".png":
            raise InputError(f"LossCurve.filename is {filename!r}, but must be a name such as loss_curve.png")
        self.filename = filename
        self.smoothing = smoothing
        self.every_n_steps = every_n_steps
        self.reference = reference
        self._drawn_step = 0
        self._drawing_seconds = 0.0
        self._longest = 1.0
        self._started = 0.0
        self._effort = BestEffort(filename)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at the reference, before anything costs time.

        Raises:
            InputError: it holds no training loss.
        """
        if self.reference is not None and stage == "fit":
            file = _metrics_path(self.reference)
            if not file.is_file() or not any("train/loss" in row for row in read_rows(file)):
                raise InputError(
                    f"LossCurve.reference {self.reference} holds no train/loss: give a run directory of `lrsa fit` or "
                    "its metrics.jsonl"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_step, self._started = trainer.global_step, monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._drawn_step and self._has_time():
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    def _has_time(self) -> bool:
        return self._drawing_seconds + self._longest <= _SHARE * (monotonic() - self._started)

    def _draw(self, trainer: Trainer) -> None:
        self._drawn_step = trainer.global_step
        files = metrics_files(trainer.loggers)
        if not trainer.is_global_zero or not files:
            return
        started = monotonic()
        with self._effort.attempt():
            self._draw_rows(trainer, files[0].rows())
        self._longest = monotonic() - started
        self._drawing_seconds += self._longest

    def _draw_rows(self, trainer: Trainer, rows: list[Row]) -> None:
        folder = Path(trainer.default_root_dir)
        runs = {folder.resolve().name: rows}
        if self.reference is not None:
            path = _metrics_path(self.reference).resolve()
            runs[f"{path.parent.name} (reference)"] = read_rows(path)
        if draw_curves(runs, folder / self.filename, self.smoothing):
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image("loss_curve", [str(folder / self.filename)], step=trainer.global_step - 1)


def draw_curves(runs: dict[str, Sequence[Row]], path: Path, smoothing: float) -> bool:
    """Draws the rows of a run's metrics file and, beside it, those of another; whether there was a loss to draw.

    Args:
        runs: by name; the first one is the run itself.
        path: of the PNG.
        smoothing: of the losses.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if not any("train/loss" in row for rows in runs.values() for row in rows):
        return False
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["loss", "norm"], ["loss", "rate"], ["loss", "tokens"]], width_ratios=[2.2, 1], sharex=True
    )
    # The run itself last, so that it lies above the reference.
    for (name, rows), colour in reversed([*zip(runs.items(), (_OWN, _REFERENCE), strict=False)]):
        _draw_losses(axes["loss"], rows, smoothing, _escaped(name), colour)
        for panel, key in (("norm", "train/grad_norm"), ("rate", "train/lr"), ("tokens", "train/tokens")):
            axes[panel].plot(*points(rows, key), color=colour, linewidth=1)
    axes["loss"].set(xlabel="optimizer step", ylabel="training loss", ylim=_around(axes["loss"]))
    axes["loss"].set_title(f"raw, and smoothed ({smoothing:g})", fontsize=9, loc="left")
    axes["loss"].legend(frameon=False, fontsize=9)
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
    beside = path.with_name(f".{path.name}")
    try:
        figure.savefig(beside, dpi=120, format="png")
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    return True


def _draw_losses(axes, rows: Sequence[Row], smoothing: float, name: str, colour: str) -> None:
    steps, losses = points(rows, "train/loss")
    by_token = points(rows, "train/answer_loss")
    axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    if by_token[1] in ([], losses):
        axes.plot(steps, smooth(losses, smoothing), color=colour, label=f"{name}: per label tokens")
        return
    axes.plot(steps, smooth(losses, smoothing), color=colour, label=f"{name}: per sample")
    label = f"{name}: per label tokens"
    axes.plot(by_token[0], smooth(by_token[1], smoothing), color=colour, linestyle="--", label=label)


def _around(axes) -> tuple[float, float] | None:
    """Bounds that show the smoothed curves large; raw losses far off them are cut. None leaves it to matplotlib."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    values = [value for line in lines for value in line.get_ydata() if value == value and abs(value) != float("inf")]
    if len(set(values)) < 2:
        return None
    margin = 0.1 * (max(values) - min(values))
    return max(0, min(values) - margin), max(values) + margin


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start; the loss of a step that was left out is not in it."""
    smoothed, average, norm = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        smoothed.append(average / norm if norm else value)
    return smoothed


def _metrics_path(reference: str) -> Path:
    path = Path(reference)
    return path / "metrics.jsonl" if path.is_dir() else path


def _escaped(name: str) -> str:
    """As matplotlib shows it letter by letter: a leading _ would hide it, $ would make it a formula."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
