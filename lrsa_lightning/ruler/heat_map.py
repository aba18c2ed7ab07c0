"""Scores by the needle's depth, as a picture."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from textwrap import shorten

from lrsa_lightning.plots import FRACTION_COLOURS, empty_cells, literal, write_values
from lrsa_lightning.ruler.records import Record

_NUM_BINS = 10
_Hits = dict[tuple[int, str], list[list[bool]]]


def depth_scores(records: Iterable[Record]) -> dict[tuple[int, str], list[float | None]]:
    """Percentage of found strings by length and budget, for each tenth of the context; None for a tenth without any."""
    found = _hits(records).items()
    return {column: [100 * fmean(own) if own else None for own in bins] for column, bins in found}


def _hits(records: Iterable[Record]) -> _Hits:
    hits: _Hits = defaultdict(lambda: [[] for _ in range(_NUM_BINS)])
    for record in records:
        for depth, hit in zip(record.depths, record.hits, strict=False):
            hits[record.length, record.budget][min(int(depth * _NUM_BINS), _NUM_BINS - 1)].append(hit)
    return hits


def draw_depths(records: Iterable[Record], path: Path, of: str = "") -> Path | None:
    """Draws the heat map of all tasks whose strings have a place; None without such a prediction.

    A cell has the percentage of the strings that were found and, in brackets, their number.

    Args:
        records: of an evaluation.
        path: of the PNG.
        of: what was scored, for the title.
    """
    if not (hits := _hits(records)):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 + 0.8 * len(hits), 5.4), layout="constrained")
    axes, nan = figure.subplots(), float("nan")
    columns = [[100 * fmean(own) if own else nan for own in bins] for bins in hits.values()]
    cells = [list(row) for row in zip(*columns, strict=True)]
    image = axes.imshow(cells, vmin=0, vmax=100, cmap=FRACTION_COLOURS, aspect="auto")
    empty_cells(axes)
    numbers = [[len(bins[row]) for bins in hits.values()] for row in range(_NUM_BINS)]
    write_values(axes, image, cells, lambda row, column: f"{cells[row][column]:.0f}\n({numbers[row][column]})")
    axes.set_xticks(range(len(hits)), [f"{length}\n{budget}" for length, budget in hits])
    axes.set_yticks(range(_NUM_BINS), [f"{10 * row}-{10 * row + 10}%" for row in range(_NUM_BINS)])
    axes.set(xlabel="length and cache budget\nin brackets: needles; grey: none", ylabel="depth of the needle")
    figure.suptitle(f"Needles found by depth, %\n{literal(shorten(of, 40))}".rstrip(), fontsize=10, x=0.02, ha="left")
    figure.colorbar(image, label="found, %")
    figure.savefig(path, dpi=120)
    return path
