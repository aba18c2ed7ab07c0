"""The report's tables as data frames of text, as Markdown and as CSV."""

from collections.abc import Iterable, Sequence

import pandas as pd

from lrsa_lightning.report.comparison import Comparison, budget_name, lengths_text, range_text, tasks_text
from lrsa_lightning.report.runs import Run, printable
from lrsa_lightning.ruler.results import CellScore

_NOT_SCORED = "–"


def text_table(comparison: Comparison) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The means with one decimal, and a mask of the same shape: the best run of each column and budget."""
    texts = comparison.means.map("{:.1f}".format)
    rounded = texts.astype(float)
    of_budget = rounded.groupby(level="budget", observed=True)
    best = (rounded == of_budget.transform("max")) & (of_budget.transform("nunique") > 1)
    texts = _named(texts.mask(comparison.means.isna(), _NOT_SCORED), "Model", "Budget")
    return texts, best.reset_index(drop=True).reindex(columns=texts.columns, fill_value=False)


def _named(frame: pd.DataFrame, model: str, budget: str) -> pd.DataFrame:
    """The frame of a comparison with its index as the first two columns."""
    labels, budgets = zip(*frame.index, strict=True)
    frame = frame.reset_index(drop=True).rename_axis(columns=None)
    frame.insert(0, model, labels)
    frame.insert(1, budget, [*map(budget_name, budgets)])
    return frame


def to_markdown(comparison: Comparison) -> str:
    """The means for people."""
    texts, best = text_table(comparison)
    rows = texts.mask(best, "**" + texts + "**").replace(r"\|", r"\\|", regex=True).values.tolist()
    rule = ["---", "---", *["---:"] * (len(texts.columns) - 2)]
    lines = ["| " + " | ".join(row) + " |" for row in [[*texts.columns], rule, *rows]]
    return f"{comparison.caption}\n\n" + "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """The means for programs: each mean is followed by its standard error."""
    columns = [name for length in comparison.means for name in (length, f"{length} stderr")]
    figures = comparison.means.join(comparison.errors.add_suffix(" stderr"))[columns]
    frame = _named(figures.map(_number, na_action="ignore"), "model", "budget")
    frame.insert(2, "mean", comparison.name)
    return frame.assign(tasks=comparison.of_tasks).to_csv(index=False, lineterminator="\n")


def task_table(runs: Iterable[Run]) -> pd.DataFrame:
    """All means: a row for each run, task, length and budget."""
    figures = ["score", "stderr", "count", "nll", "exact_match"]
    rows = [
        [
            run.label,
            mean.task,
            str(mean.length),
            budget_name(mean.budget),
            *(_number(getattr(mean, f)) for f in figures),
        ]
        for run in runs
        for mean in run.means.values()
    ]
    return pd.DataFrame(rows, columns=["model", "task", "length", "budget", *figures])


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What was compared: a row for each run."""
    return pd.DataFrame([_run_row(run, [*run.means.values()]) for run in runs])


def _run_row(run: Run, means: Sequence[CellScore]) -> dict[str, str]:
    return {
        "Run": run.label,
        "Folder": printable(str(run.path)),
        "Step": "" if run.step is None else str(run.step),
        "Attention in training": run.config.attention,
        "Tasks": tasks_text(dict.fromkeys(mean.task for mean in means)) if means else "",
        "Lengths": lengths_text(sorted({mean.length for mean in means})),
        "Budgets": ", ".join(map(budget_name, dict.fromkeys(mean.budget for mean in means))),
        "Samples per score": range_text(mean.count for mean in means) if means else "",
    }


def measured_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Speed, memory and losses of the runs that were trained."""
    return pd.DataFrame([_measured_row(run) for run in runs if run.losses[0]])


def _measured_row(run: Run) -> dict[str, str]:
    return {
        "Run": run.label,
        "Tokens/s": _rounded(run.measured.tokens_per_second, ",.0f"),
        "Memory, GiB": _rounded(run.measured.peak_memory_gib, ".1f"),
        "Training loss": _rounded(run.measured.train_loss, ".4f"),
        "Validation loss": _rounded(run.measured.val_loss, ".4f"),
    }


def _rounded(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")
