"""Heat maps of findings: what is kept, and what the visible keys hold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrsa_lightning.diagnosis.findings import Findings
from lrsa_lightning.diagnosis.marks import CLASSES
from lrsa_lightning.plots import FRACTION_COLOURS, empty_cells, literal, write_values

_DPI = 120
# Its middle is what a random choice would keep.
_AROUND = "PuOr_r"
_MOST_VALUES = 12  # columns with values in their cells
_ROW_INCHES, _HEIGHTS = 0.17, (3.2, 12.0)


def draw_kept(findings: Findings, path: Path, title: str, lag_size: int, kept_fraction: float) -> None:
    """Draws the fraction of tokens kept by place in the text, by place in the chunk and by class.

    Args:
        findings: of a model.
        path: of the PNG.
        title: names model and rule.
        lag_size: L, tokens in a chunk.
        kept_fraction: what a random choice would keep, M / L.
    """
    from matplotlib.colors import TwoSlopeNorm

    groups = findings.kept_by_class_AGC.shape[1]
    figure, (depth, offset, by_class) = _panels(findings, groups, [2, 2, 1.5], f"Tokens kept: {title}")
    middle = min(max(kept_fraction, 0.01), 0.99)
    look = {"cmap": _AROUND, "norm": TwoSlopeNorm(middle, 0, 1), "layers": findings.layers, "rows_of_layer": groups}
    _heat_map(depth, _by_row(findings.kept_by_depth_AGX), "place in the text", ["0", "100%"], **look)
    _heat_map(offset, _by_row(findings.kept_by_offset_AGX), "place in the chunk, tokens", ["0", str(lag_size)], **look)
    present = _present(findings)
    image = _heat_map(
        by_class, _by_row(findings.kept_by_class_AGC[..., present]), "class of the token", _names(present), **look
    )
    depth.set_ylabel("layer" if groups == 1 else f"layer, its {groups} KV heads below one another")
    _bar(figure, image, f"tokens kept; a random choice keeps {kept_fraction:.0%}")
    figure.savefig(path, dpi=_DPI)


def draw_held(findings: Findings, path: Path, title: str) -> None:
    """Draws the fraction of full attention's mass on visible keys by head and by place of the query.

    Beside it stands where the queries that predict the answer look, and how much of that is visible.

    Args:
        findings: of a model.
        path: of the PNG.
        title: names model and rule.
    """
    figure, axes = _panels(findings, 1, [2, 2, 1.5, 1.5], f"Full attention on visible keys: {title}")
    held = [findings.held_AH, findings.held_by_depth_AX]
    low = np.floor(10 * min([0.9, *(np.nanmin(z) for z in held if not np.isnan(z).all())])) / 10
    look = {"cmap": FRACTION_COLOURS, "layers": findings.layers, "rows_of_layer": 1}
    names = [str(head) for head in range(held[0].shape[1])]
    _heat_map(axes[0], held[0], "query head", names, vmin=low, vmax=1, **look)
    image = _heat_map(axes[1], held[1], "place of the query", ["0", "100%"], vmin=low, vmax=1, **look)
    _bar(figure, image, "of full attention on visible keys", axes[:2])
    present = [i for i in range(len(CLASSES)) if findings.answers_look_at_AC[:, i].any()]
    given = {"vmin": 0, "vmax": 1, **look}
    _heat_map(axes[2], findings.answers_look_at_AC[:, present], "answer looks at", _names(present), **given)
    image = _heat_map(axes[3], findings.answers_see_AC[:, present], "of that it sees", _names(present), **given)
    _bar(figure, image, "of full attention", axes[2:])
    axes[0].set_ylabel("layer")
    figure.savefig(path, dpi=_DPI)


def _panels(findings: Findings, rows_of_layer: int, widths: Sequence[float], title: str):
    from matplotlib.figure import Figure

    height = min(max(_ROW_INCHES * len(findings.layers) * rows_of_layer + 1.6, _HEIGHTS[0]), _HEIGHTS[1])
    figure = Figure(figsize=(2.1 * sum(widths) + 1.5, height), layout="constrained")
    axes = figure.subplots(1, len(widths), sharey=True, width_ratios=widths)
    about = f"{findings.num_texts} texts, {findings.num_tokens / findings.num_texts:.0f} tokens each on average"
    figure.suptitle(f"{literal(title)}\n{about}", fontsize=10, x=0.01, ha="left")
    return figure, axes


def _heat_map(axes, cells, xlabel: str, names: Sequence[str], *, layers: Sequence[int], rows_of_layer: int, **look):
    """A row for each layer, or for each head of each layer; a cell without a value is grey.

    The names are those of all columns, or of the two ends of the axis.
    """
    image = axes.imshow(np.ma.masked_invalid(cells), aspect="auto", interpolation="nearest", **look)
    axes.set_xlabel(xlabel, fontsize=9)
    _name_columns(axes, names, cells.shape[1])
    every = -(-len(layers) // 40)
    middles = [rows_of_layer * row + (rows_of_layer - 1) / 2 for row in range(len(layers))]
    axes.set_yticks(middles[::every], [str(layer) for layer in layers][::every], fontsize=8)
    empty_cells(axes)
    if rows_of_layer > 1:
        for row in range(1, len(layers)):
            axes.axhline(rows_of_layer * row - 0.5, color="white", linewidth=0.8)
    if cells.shape[1] <= _MOST_VALUES and len(cells) <= 100:
        write_values(axes, image, cells, lambda row, column: f"{100 * cells[row, column]:.0f}")
    return image


def _name_columns(axes, names: Sequence[str], columns: int) -> None:
    if len(names) < columns:
        axes.set_xticks([-0.5, columns - 0.5], [names[0], names[-1]], fontsize=8)
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
            label.set_ha(side)
    else:
        is_long = max(map(len, names)) > 3
        axes.set_xticks(range(columns), names, fontsize=8, rotation=30 if is_long else 0)


def _names(classes: Sequence[int]) -> list[str]:
    return [CLASSES[i] for i in classes]


def _present(findings: Findings) -> list[int]:
    return [i for i, tokens in enumerate(findings.tokens_C) if tokens]


def _by_row(values_AGX: np.ndarray) -> np.ndarray:
    return values_AGX.reshape(-1, values_AGX.shape[-1])


def _bar(figure, image, label: str, axes=None) -> None:
    from matplotlib.ticker import PercentFormatter

    bar = figure.colorbar(image, ax=figure.axes if axes is None else list(axes), label=label, pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.outline.set_visible(False)
