"""The paper's Table 1 and the cells it is made of, as Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from lrsa_lightning.report.comparison import Comparison, budget_name, length_name
from lrsa_lightning.report.runs import Run

TASK_COLUMNS = ["model", "task", "length", "budget", "score", "stderr", "count", "nll", "exact_match"]


def header(comparison: Comparison) -> list[str]:
    """Of the columns that people read."""
    return ["Model", "Budget", *map(length_name, comparison.lengths), "Avg"]


def text_rows(comparison: Comparison, bold: str, empty: str = "–") -> list[list[str]]:
    """The table's cells as text, the best run of each column and budget in bold.

    Args:
        comparison: of the runs.
        bold: format of a best cell, with {}.
        empty: cell without a mean.
    """
    rows = {place: comparison.row(*place) for place in comparison.rows}
    lines = []
    for (label, budget), means in rows.items():
        texts = ["" if mean is None else f"{mean.value:.1f}" for mean in means]
        for column, text in enumerate(texts):
            rivals = [f"{own[column].value:.1f}" for (_, b), own in rows.items() if b == budget and own[column]]
            best = text and len(set(rivals)) > 1 and float(text) == max(map(float, rivals))
            texts[column] = bold.format(text) if best else text or empty
        lines.append([label, budget_name(budget), *texts])
    return lines


def to_markdown(comparison: Comparison) -> str:
    """Table 1 for people."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in text_rows(comparison, "**{}**")]
    top = [header(comparison), ["---", "---", *["---:"] * (len(comparison.lengths) + 1)]]
    lines = ["| " + " | ".join(row) + " |" for row in [*top, *rows]]
    return f"{comparison.caption}\n\n" + "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Table 1 for programs: each mean is followed by its standard error."""
    columns = [name for column in header(comparison)[2:] for name in (column, f"{column} stderr")]
    rows = []
    for label, budget in comparison.rows:
        figures = [
            x for mean in comparison.row(label, budget) for x in ((mean.value, mean.stderr) if mean else (None,) * 2)
        ]
        rows.append([label, budget_name(budget), comparison.name, *map(_number, figures), comparison.of_tasks])
    return _csv(["model", "budget", "mean", *columns, "tasks"], rows)


def task_rows(runs: Iterable[Run]) -> list[list[str]]:
    """Each run x task x length x budget, in `TASK_COLUMNS`."""
    rows = []
    for run in runs:
        for cell in run.cells.values():
            figures = map(_number, (cell.score, cell.stderr))
            further = map(_number, (cell.nll, cell.exact_match))
            place = [run.label, cell.task, str(cell.length), budget_name(cell.budget)]
            rows.append([*place, *figures, str(cell.count), *further])
    return rows


def tasks_csv(runs: Iterable[Run]) -> str:
    """All cells for programs."""
    return _csv(TASK_COLUMNS, task_rows(runs))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def _csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()
