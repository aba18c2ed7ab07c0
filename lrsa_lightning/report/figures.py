"""The report's pictures: the loss curves of all runs, and means against length for each run and cache budget."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

from lrsa_lightning.metrics import smooth
from lrsa_lightning.plots import literal, scale_losses
from lrsa_lightning.report.comparison import AVERAGE, Comparison, budget_name
from lrsa_lightning.report.runs import Run

_SIZE, DPI = (9, 4.8), 120
_LINES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
_MARKERS = "os^Dvp"


def draw_losses(runs: Sequence[Run], path: Path, smoothing: float | None = None) -> Path | None:
    """Draws the smoothed training losses over the raw ones; None where no run has any.

    Args:
        runs: each has its own colour.
        path: of the PNG.
        smoothing: weight of the past in the exponential average. None averages about 1% of the longest curve's
            steps, but at least 10.
    """
    longest = max((len(run.losses[0]) for run in runs), default=0)
    if longest == 0:
        return None
    weight = max(0.9, 1 - 100 / longest) if smoothing is None else smoothing
    figure, axes = new_axes()
    colours, lines = colours_of([run.label for run in runs]), []
    for run in runs:
        if run.losses[0]:
            axes.plot(*run.losses, color=colours[run.label], alpha=0.3, linewidth=0.8, zorder=1)
            lines += axes.plot(run.losses[0], smooth(run.losses[1], weight), color=colours[run.label], zorder=2)
            lines[-1].set_label(literal(run.label))
    scale_losses(axes, (y for line in axes.get_lines() for y in line.get_ydata()))
    axes.set(xlabel="optimizer step", ylabel="loss per label tokens")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Training loss", fontsize=10, loc="left")
    add_legend(figure, lines, f"smoothed ({weight:.3g}) over raw")
    figure.savefig(path, dpi=DPI)
    return path


def draw_means(comparison: Comparison, path: Path, title: str, labels: Sequence[str]) -> None:
    """Draws means over tasks against length: a colour for each run, a line style for each budget, standard errors.

    The labels of all runs of the report decide on the colours: a run has the same one in all figures.
    """
    from matplotlib.lines import Line2D

    figure, axes = new_axes()
    means, errors = (frame.drop(columns=AVERAGE) for frame in (comparison.means, comparison.errors.fillna(0)))
    colours, budgets = colours_of(labels), dict.fromkeys(budget for _, budget in means.index)
    looks = cycle({"linestyle": line, "marker": mark} for line, mark in zip(_LINES, _MARKERS, strict=True))
    styles = {budget: {"markersize": 5, **look} for budget, look in zip(budgets, looks, strict=False)}
    for number, (label, budget) in enumerate(means.index):
        scored = means.iloc[number].dropna()
        # Side by side: the error bars of equal scores stay visible.
        at = means.columns.get_indexer(scored.index) + 0.02 * (number - (len(means) - 1) / 2)
        spread = {"yerr": _within_scores(scored, errors.iloc[number][scored.index]), "elinewidth": 0.8, "capsize": 2.5}
        axes.errorbar(at, scored, color=colours[label], clip_on=False, **spread, **styles[budget])
    axes.set_xticks(range(means.shape[1]), means.columns)
    axes.set(xlabel="length, tokens", ylabel="score, 0..100", ylim=(0, 100))
    axes.set_title(fill(title, 85), fontsize=10, loc="left")
    axes.set_xlim(-0.4, means.shape[1] - 0.6)
    runs = [Line2D([], [], color=colours[label], linewidth=4, label=literal(label)) for label in comparison.labels]
    space = Line2D([], [], linestyle="", label=" ")
    kept = [Line2D([], [], color="grey", label=literal(budget_name(b)), **style) for b, style in styles.items()]
    add_legend(figure, [*runs, space, *kept], "run and cache budget")
    figure.savefig(path, dpi=DPI)


def _within_scores(scored, errors):
    """Lengths of the error bars below and above scores, none beyond 0..100."""
    return [errors.clip(upper=scored), errors.clip(upper=100 - scored)]


def new_axes():
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=_SIZE, layout="constrained")).subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure, handles: list, title: str) -> None:
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title=title, alignment="left")


def colours_of(labels: Sequence[str]) -> dict[str, tuple]:
    """A colour for each run: ten that are easy to distinguish, or one for each of more runs."""
    from matplotlib import colormaps

    few = len(labels) <= 10
    colours = colormaps["tab10"].colors if few else colormaps["turbo"].resampled(len(labels))(range(len(labels)))
    return {label: tuple(colour) for label, colour in zip(labels, colours, strict=False)}
