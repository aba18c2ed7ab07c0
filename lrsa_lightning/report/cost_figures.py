"""The report's pictures of cost: score against the bytes of the cache, and loss against the time of training."""

from collections.abc import Sequence
from pathlib import Path

from lrsa_lightning.metrics import smooth
from lrsa_lightning.plots import literal, scale_losses
from lrsa_lightning.report.arms import columns_of
from lrsa_lightning.report.comparison import AVERAGE, Comparison, budget_name
from lrsa_lightning.report.figures import DPI, add_legend, colours_of, new_axes
from lrsa_lightning.report.runs import Run

_MIB = 2**20
_SMOOTHING = 0.9


def bytes_and_scores(run: Run, comparison: Comparison) -> dict[str, tuple[float, float]]:
    """MiB of the cache after the prompt, and score, by budget: means over the common tasks and lengths of a table."""
    weights = columns_of(comparison)[AVERAGE]
    found = {}
    for budget in dict.fromkeys(budget for _, budget in comparison.means.index):
        cells = {cell: run.means.get((*cell, budget)) for cell in weights}
        if all(cell is not None and None not in (cell.kv_bytes, cell.score) for cell in cells.values()):
            found[budget] = (
                sum(weight * cells[cell].kv_bytes for cell, weight in weights.items()) / _MIB,
                sum(weight * cells[cell].score for cell, weight in weights.items()),
            )
    return found


def draw_bytes(runs: Sequence[Run], comparison: Comparison, path: Path) -> Path | None:
    """Draws a line for each run through its budgets; None where no record has the size of its cache."""
    places = {run.label: found for run in runs if (found := bytes_and_scores(run, comparison))}
    if not places:
        return None
    figure, axes = new_axes()
    colours = colours_of([run.label for run in runs])
    lines = []
    for label, found in places.items():
        lines += axes.plot(*zip(*found.values(), strict=True), "o-", color=colours[label], clip_on=False)
        lines[-1].set_label(literal(label))
    # Models of several sizes have several bytes for a budget: each place is named.
    named = {(budget_name(b), float(f"{size:.3g}")) for found in places.values() for b, (size, _) in found.items()}
    for name, size in sorted(named):
        look = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(literal(name), (size, 100), (0, 6), **look)
    axes.set(xlim=(0, None), ylim=(0, 100), xlabel="cache after the prompt, MiB", ylabel="score, 0..100")
    add_legend(figure, lines, "run")
    figure.savefig(path, dpi=DPI)
    return path


def draw_times(runs: Sequence[Run], path: Path) -> Path | None:
    """Draws smoothed training losses against the minutes of training; None where no run has its times."""
    figure, axes = new_axes()
    colours, lines = colours_of([run.label for run in runs]), []
    for run in runs:
        timed = [(run.seconds[step] / 60, loss) for step, loss in zip(*run.losses, strict=True) if step in run.seconds]
        if timed:
            minutes, losses = zip(*timed, strict=True)
            lines += axes.plot(minutes, smooth(losses, _SMOOTHING), color=colours[run.label], label=literal(run.label))
    if not lines:
        return None
    scale_losses(axes, (loss for line in lines for loss in line.get_ydata()))
    axes.set(xlabel="minutes of training, without evaluations", ylabel="loss per label tokens")
    add_legend(figure, lines, f"smoothed ({_SMOOTHING})")
    figure.savefig(path, dpi=DPI)
    return path
