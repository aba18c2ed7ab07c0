"""Scores by the needle's depth, as a picture."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from lrsa_lightning.ruler.records import Record

_NUM_BINS = 10


def depth_scores(records: Iterable[Record]) -> dict[tuple[int, str], list[float | None]]:
    """Percentage of found strings by length and budget, for each tenth of the context; None for a tenth without any."""
    hits: dict[tuple[int, str], list[list[bool]]] = defaultdict(lambda: [[] for _ in range(_NUM_BINS)])
    for record in records:
        for depth, hit in zip(record.depths, record.hits, strict=False):
            hits[record.length, record.budget][min(int(depth * _NUM_BINS), _NUM_BINS - 1)].append(hit)
    return {column: [100 * fmean(own) if own else None for own in bins] for column, bins in hits.items()}


def draw_depths(records: Iterable[Record], path: Path) -> Path | None:
    """Draws the heat map of all tasks whose strings have a place; None without such a prediction."""
    scores = depth_scores(records)
    if not scores:
        return None
    from matplotlib.figure import Figure

    columns = list(scores)
    axes = (figure := Figure(figsize=(1.5 + 0.8 * len(columns), 5), layout="constrained")).subplots()
    nan = float("nan")
    cells = [[nan if scores[c][row] is None else scores[c][row] for c in columns] for row in range(_NUM_BINS)]
    image = axes.imshow(cells, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(columns)), [f"{length}\n{budget}" for length, budget in columns])
    axes.set_yticks(range(_NUM_BINS), [f"{10 * row}-{10 * row + 10}%" for row in range(_NUM_BINS)])
    axes.set(xlabel="length and cache budget", ylabel="depth of the needle")
    figure.colorbar(image, label="found, %")
    figure.savefig(path, dpi=120)
    return path
