"""The report's pictures: loss curves overlaid, and means against length for each run and cache budget."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from textwrap import fill

from lrsa_lightning.callbacks.loss_curve import smooth
from lrsa_lightning.report.comparison import Comparison, budget_name, length_name
from lrsa_lightning.report.runs import Run

_SIZE, _DPI = (9, 4.8), 120
_LINES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
_MARKERS = "os^Dvp"


def draw_losses(runs: Sequence[Run], path: Path, smoothing: float | None = None) -> Path | None:
    """Draws the smoothed training losses over the raw ones; None where no run has any.

    Args:
        runs: a colour each.
        path: of the PNG.
        smoothing: weight of the past in the exponential average; when None, about 1% of the longest
            curve's steps count, but at least 10.
    """
    longest = max((len(run.losses[0]) for run in runs), default=0)
    if longest == 0:
        return None
    weight = max(0.9, 1 - 100 / longest) if smoothing is None else smoothing
    figure, axes = _axes()
    colours, lines = _colours([run.label for run in runs]), []
    for run in runs:
        if run.losses[0]:
            axes.plot(*run.losses, color=colours[run.label], alpha=0.15, linewidth=0.8, zorder=1)
            lines += axes.plot(run.losses[0], smooth(run.losses[1], weight), color=colours[run.label], zorder=2)
            lines[-1].set_label(_text(run.label))
    axes.set(xlabel="optimizer step", ylabel="loss per label tokens", ylim=_around(lines))
    axes.set_title("Training loss", fontsize=10, loc="left")
    _legend(figure, lines, f"smoothed ({weight:.3g}) over raw")
    figure.savefig(path, dpi=_DPI)
    return path


def _around(lines: Sequence) -> tuple[float, float] | None:
    """Bounds that show the smoothed curves large; raw losses far off them are cut. None leaves it to matplotlib."""
    values = [value for line in lines for value in line.get_ydata() if isfinite(value)]
    if len(set(values)) < 2:
        return None
    margin = 0.2 * (max(values) - min(values))
    return max(0, min(values) - margin), max(values) + margin


def draw_means(comparison: Comparison, path: Path, title: str, labels: Sequence[str] | None = None) -> Path:
    """Draws means over tasks against length: a colour for each run, a line style for each budget, standard errors.

    Args:
        comparison: the means.
        path: of the PNG.
        title: above it, in as many lines as it takes.
        labels: all runs of the report, so that a run has one colour in all of its figures.
    """
    from matplotlib.lines import Line2D

    figure, axes = _axes()
    colours = _colours(labels or comparison.labels)
    styles = {budget: (_LINES[i % 6], _MARKERS[i % 6]) for i, budget in enumerate(comparison.budgets)}
    for number, (label, budget) in enumerate(comparison.rows):
        line, marker = styles[budget]
        # Side by side, so that error bars of equal scores can be told apart.
        shift = 0.02 * (number - (len(comparison.rows) - 1) / 2)
        _draw_line(axes, comparison, label, budget, shift, color=colours[label], linestyle=line, marker=marker)
    axes.set_xticks(range(len(comparison.lengths)), list(map(length_name, comparison.lengths)))
    axes.set(xlabel="length, tokens", ylabel="score, 0..100", ylim=_limits(comparison))
    axes.set_title(fill(title, 85), fontsize=10, loc="left")
    axes.set_xlim(-0.4, len(comparison.lengths) - 0.6)
    runs = [Line2D([], [], color=colours[label], linewidth=4, label=_text(label)) for label in comparison.labels]
    grey = {"color": "grey", "markersize": 5}
    budgets = [
        Line2D([], [], linestyle=line, marker=marker, label=_text(budget_name(budget)), **grey)
        for budget, (line, marker) in styles.items()
    ]
    _legend(figure, [*runs, Line2D([], [], linestyle="", label=" "), *budgets], "run and cache budget")
    figure.savefig(path, dpi=_DPI)
    return path


def _draw_line(axes, comparison: Comparison, label: str, budget: str, shift: float, **style) -> None:
    points = [(i, mean) for i, mean in enumerate(comparison.row(label, budget)[:-1]) if mean is not None]
    places = [i + shift for i, _ in points]
    errors = [mean.stderr or 0 for _, mean in points]
    axes.errorbar(
        places, [mean.value for _, mean in points], yerr=errors, markersize=5, elinewidth=0.8, capsize=2.5, **style
    )


def _limits(comparison: Comparison) -> tuple[float, float]:
    """Bounds of the scores' axis: all error bars with a margin, hardly beyond 0..100, at least 20 wide."""
    ends = [mean.value + sign * (mean.stderr or 0) for mean in comparison.cells.values() for sign in (-1, 1)]
    middle, half = (min(ends) + max(ends)) / 2, max(10, 0.58 * (max(ends) - min(ends)))
    low, high = max(-3, middle - half), min(103, middle + half)
    return min(low, max(-3, high - 20)), max(high, min(103, low + 20))


def _axes():
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=_SIZE, layout="constrained")).subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure, handles: list, title: str) -> None:
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title=title, alignment="left")


def _colours(labels: Sequence[str]) -> dict[str, tuple]:
    """A colour for each run, ten that are told apart easily, or as many as it takes."""
    from matplotlib import colormaps

    few = len(labels) <= 10
    colours = colormaps["tab10"].colors if few else colormaps["turbo"].resampled(len(labels))(range(len(labels)))
    return {label: tuple(colour) for label, colour in zip(labels, colours, strict=False)}


def _text(label: str) -> str:
    """As matplotlib shows it letter by letter: a leading _ would hide it, $ would make it a formula."""
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")
