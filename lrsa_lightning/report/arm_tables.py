"""The tables of arms: the paper's layout with standard errors over samples and seeds, and differences to one arm."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lrsa_lightning.report.arms import Arm, Estimate, columns_of, difference, estimate
from lrsa_lightning.report.comparison import Comparison, budget_name

_NOT_SCORED = "–"
_ERRORS = "mean ± standard error over samples ± standard error over seeds"
_FIGURES = ("mean", "of_samples", "of_seeds")


def arms_frame(arms: Sequence[Arm], baseline: Arm | None, comparison: Comparison) -> pd.DataFrame:
    """All estimates: a row for each budget, arm and column of the table, and for each task and length.

    Args:
        arms: of `arms_of`.
        baseline: one of them, from which the differences are; None: there are none.
        comparison: of their runs; its tasks are in the means.
    """
    rows = []
    columns = columns_of(comparison)
    for budget in dict.fromkeys(budget for _, budget in comparison.means.index):
        of_baseline = None if baseline is None else baseline.scores(budget)
        for arm in arms:
            scores = arm.scores(budget)
            for column, weights in columns.items():
                if (own := estimate(scores, weights)) is None:
                    continue
                row = {"model": arm.label, "budget": budget_name(budget), "column": column, "seeds": len(arm.runs)}
                row |= _figures(own, "")
                if baseline not in (None, arm):
                    row |= _figures(difference(scores, of_baseline, weights), "difference ")
                rows.append(row)
    names = [f"{kind}{figure}" for kind in ("", "difference ")[: 1 + bool(baseline)] for figure in _FIGURES]
    return pd.DataFrame(rows, columns=["model", "budget", "column", "seeds", *names])


def _figures(found: Estimate | None, kind: str) -> dict[str, Any]:
    return {f"{kind}{figure}": None if found is None else getattr(found, figure) for figure in _FIGURES}


def arms_markdown(frame: pd.DataFrame, baseline: Arm | None, comparison: Comparison) -> str:
    """The means in the paper's layout, and the differences to the baseline in the same one."""
    text = f"{comparison.caption}: {_ERRORS}\n\n{_table(frame, '', comparison)}"
    if baseline is not None:
        others = frame[frame["model"] != baseline.label]
        text += f"\nDifference to {baseline.label} on the same samples: {_ERRORS}\n\n"
        text += _table(others, "difference ", comparison)
    return text


def _table(frame: pd.DataFrame, kind: str, comparison: Comparison) -> str:
    columns = [*comparison.means.columns]
    lines = [
        "| Model | Seeds | Budget | " + " | ".join(columns) + " |",
        "| --- | ---: | --- " + "| ---: " * len(columns) + "|",
    ]
    for (budget, label), own in frame.groupby(["budget", "model"], sort=False):
        cells = own.set_index("column")
        texts = [_cell(cells.loc[column], kind) if column in cells.index else _NOT_SCORED for column in columns]
        name = label.replace("|", "\\|")
        lines.append(f"| {name} | {cells['seeds'].iloc[0]} | {budget} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series, kind: str) -> str:
    mean, *errors = (row[f"{kind}{figure}"] for figure in _FIGURES)
    if pd.isna(mean):
        return _NOT_SCORED
    texts = [_NOT_SCORED if pd.isna(error) else f"{error:.1f}" for error in errors]
    return " ± ".join([f"{mean:+.1f}" if kind else f"{mean:.1f}", *texts])
