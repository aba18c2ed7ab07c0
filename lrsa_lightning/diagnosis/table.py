"""The findings as a table of a terminal, in percent."""

import warnings

import numpy as np
from rich.table import Table

from lrsa_lightning.diagnosis.findings import Findings
from lrsa_lightning.diagnosis.marks import CLASSES, NEEDLE


def table(findings: Findings) -> Table:
    """A row for each layer, and their mean: what is kept of each class, and what the visible keys hold."""
    columns = _columns(findings)
    made = Table(title=_title(findings), title_justify="left")
    for name in ("layer", *columns):
        made.add_column(name, justify="right")
    for row, layer in enumerate(findings.layers):
        made.add_row(str(layer), *(_percent(values[row]) for values in columns.values()))
    made.add_section()
    made.add_row("mean", *(_percent(_mean(values)) for values in columns.values()))
    return made


def _title(findings: Findings) -> str:
    texts = f"{findings.num_texts} texts, {findings.num_tokens} tokens"
    return f"{texts}; tokens kept, and full attention on visible keys, %"


def _columns(findings: Findings) -> dict[str, np.ndarray]:
    """Values of each layer by the name of the column; of the classes those that the texts have."""
    present = [i for i, tokens in enumerate(findings.tokens_C) if tokens]
    names = [name.replace("punctuation", "punct.") for name in CLASSES]
    columns = {f"kept:\n{names[i]}": _mean(findings.kept_by_class_AGC[..., i], axis=1) for i in present}
    columns["held"] = _mean(findings.held_AH, axis=1)
    columns["held of\nanswers"] = _mean(findings.held_of_answers_AH, axis=1)
    if NEEDLE in present:
        columns["answers\nlook at\nneedle"] = findings.answers_look_at_AC[:, NEEDLE]
        columns["and see\nof it"] = findings.answers_see_AC[:, NEEDLE]
    return columns


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    with warnings.catch_warnings():  # of nothing: a layer that keeps everything
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.1f}"
