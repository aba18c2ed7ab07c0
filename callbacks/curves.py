"""A run's metrics as one picture: training and validation loss, RULER, gradient norm, learning rate and tokens."""

from collections.abc import Sequence
from pathlib import Path

from lrsa_lightning.metrics import Row, points, smooth
from lrsa_lightning.plots import literal, scale_losses

_OWN, _REFERENCE = "tab:blue", "tab:orange"
_PANELS = {"norm": "train/grad_norm", "rate": "train/lr", "tokens": "train/tokens"}
# RULER's means, best first, by the panel's title. Between the first and the last check only references are rated.
_FIGURES = {"ruler": "RULER score", "ruler_exact_match": "RULER references matched, %"}
_MEANS = ("average", "subset_mean")
_LINES = ["-", "--", ":", "-."]


def draw_curves(runs: dict[str, Sequence[Row]], path: Path, smoothing: float) -> bool:
    """Draws the metrics of a run, the first one, and of a reference where there is one.

    The loss axis holds every training loss, also before smoothing.

    Returns:
        False where no run has a training loss: nothing was drawn.
    """
    from matplotlib.figure import Figure

    if not any("train/loss" in row for rows in runs.values() for row in rows):
        return False
    figure_of_ruler = _figure_of_ruler([row for rows in runs.values() for row in rows])
    small = [*(["ruler"] if figure_of_ruler else []), *_PANELS]
    figure = Figure(figsize=(11, 1.8 * len(small)), layout="constrained")
    axes = figure.subplot_mosaic([["loss", name] for name in small], width_ratios=[2.2, 1], sharex=True)
    # The run itself is drawn last, above the reference.
    for (name, rows), colour in reversed([*zip(runs.items(), (_OWN, _REFERENCE), strict=False)]):
        _draw_losses(axes["loss"], rows, smoothing, literal(name), colour)
        for panel, key in _PANELS.items():
            axes[panel].plot(*points(rows, key), color=colour, linewidth=1)
        if figure_of_ruler:
            _draw_ruler(axes["ruler"], rows, figure_of_ruler, colour)
    scale_losses(axes["loss"], (y for line in axes["loss"].get_lines() for y in line.get_ydata()))
    axes["loss"].set(xlabel="optimizer step", ylabel="loss")
    axes["loss"].set_title(f"training loss, raw and smoothed ({smoothing:g})", fontsize=9, loc="left")
    axes["loss"].xaxis.get_major_locator().set_params(integer=True)
    axes["loss"].legend(frameon=False, fontsize=9)
    _style(axes)
    _save(figure, path)
    return True


def _draw_losses(axes, rows: Sequence[Row], smoothing: float, name: str, colour: str) -> None:
    steps, losses = points(rows, "train/loss")
    by_token = points(rows, "train/answer_loss")
    weighs_samples = by_token[1] not in ([], losses)
    axes.plot(steps, losses, color=colour, alpha=0.35, linewidth=0.8)
    label = f"{name}: per {'sample' if weighs_samples else 'label tokens'}"
    axes.plot(steps, smooth(losses, smoothing), color=colour, label=label)
    if weighs_samples:
        smoothed = smooth(by_token[1], smoothing)
        axes.plot(by_token[0], smoothed, color=colour, linestyle="--", label=f"{name}: per label tokens")
    validation = points(rows, "val/loss")
    if validation[0]:
        look = {"color": colour, "linestyle": ":", "marker": "o", "markersize": 4, "markeredgecolor": "white"}
        axes.plot(*validation, **look, label=f"{name}: validation")


def _figure_of_ruler(rows: Sequence[Row]) -> str | None:
    """The figure of RULER that was logged at the most steps; None where there is none."""
    steps = {figure: {row["step"] for row in rows if _budgets([row], figure)} for figure in _FIGURES}
    best = max(_FIGURES, key=lambda figure: len(steps[figure]))
    return best if steps[best] else None


def _budgets(rows: Sequence[Row], figure: str) -> dict[str, str]:
    """The keys of a figure's mean by budget, at the greatest length."""
    for mean in _MEANS:
        names = {name for row in rows for name in row if name.startswith(f"{figure}/{mean}/")}
        if names:
            longest = max(int(name.split("/")[2]) for name in names)
            return {name.split("/")[3]: name for name in names if int(name.split("/")[2]) == longest}
    return {}


def _draw_ruler(axes, rows: Sequence[Row], figure: str, colour: str) -> None:
    keys = _budgets(rows, figure)
    for (budget, key), line in zip(sorted(keys.items(), reverse=True), _LINES, strict=False):
        look = {"linestyle": line, "marker": "o", "markersize": 3, "linewidth": 1.2, "clip_on": False}
        axes.plot(*points(rows, key), color=colour, **look, label=budget)
        axes.set_title(f"{_FIGURES[figure]}, {key.split('/')[2]} tokens")
    axes.set_ylim(0, 100)
    axes.legend(*_first_of_each(axes), frameon=False, fontsize=7, ncols=3, handlelength=2.5)


def _first_of_each(axes) -> tuple[list, list]:
    """Handles and labels of a legend that names the line styles, not the colours of runs."""
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    names = sorted(first, reverse=True)
    return [first[name] for name in names], names


def _style(axes: dict) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes["norm"].set(title="gradient norm, before clipping", yscale="log")
    axes["rate"].set(title="learning rate")
    axes["tokens"].set(title="tokens seen", xlabel="optimizer step")
    axes["norm"].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
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
