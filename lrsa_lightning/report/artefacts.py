"""Writes all files of a report into a folder: tables, figures, and one HTML page made from ``page.html``."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lrsa_lightning.errors import InputError
from lrsa_lightning.report.arm_tables import arms_frame, arms_markdown
from lrsa_lightning.report.arms import arms_of, find_arm
from lrsa_lightning.report.comparison import Comparison, compare
from lrsa_lightning.report.cost_figures import draw_bytes, draw_times
from lrsa_lightning.report.figures import draw_losses, draw_means
from lrsa_lightning.report.notes import QA_TASKS, notes
from lrsa_lightning.report.runs import Run
from lrsa_lightning.report.tables import measured_table, run_table, task_table, text_table, to_csv, to_markdown
from lrsa_lightning.ruler.heat_map import draw_depths

_TABLES = ("table1.md", "table1.csv", "table_arms.md", "table_arms.csv", "table_tasks.csv")
_FIGURES = ("fig2_loss.png", "fig3_qa.png", "fig4_mean.png", "fig5_bytes.png", "fig6_time.png")
_PAGE = "report.html"
_Picture = tuple[str, Path]  # caption and PNG


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        markdown: the table of means, or the table of arms where there is one; empty where nothing was scored.
        notes: on what is missing or differs.
        files: in the order of the page.
    """

    markdown: str
    notes: list[str]
    files: list[Path]


def write_report(
    runs: Sequence[Run],
    folder: Path,
    baseline: str | None = None,
    further: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> Report:
    """Writes tables, figures and page. Files of an earlier report are removed.

    Args:
        runs: of `read_runs`.
        folder: is made where it does not exist.
        baseline: the run, or the run of several seeds, to which differences are given.
        further: tables of text for the page, by their titles.

    Raises:
        InputError: the baseline is none of the runs, or the folder is a file.
    """
    comparison, questions = compare(runs), compare(runs, QA_TASKS)
    found = notes(runs, comparison, questions)
    arms = _arms(runs, comparison, baseline)
    _clear(folder)
    markdown = _write_tables(runs, comparison, folder)
    if arms is not None:
        frame, markdown = arms
        frame.to_csv(folder / "table_arms.csv", index=False, lineterminator="\n", float_format="%.4f")
        (folder / "table_arms.md").write_text(markdown, encoding="utf-8")
    figures = _draw_figures(runs, comparison, questions, folder)
    places = {run.label: folder / f"depths_{run.file_stem}.png" for run in runs}
    maps = [(run.label, places[run.label]) for run in runs if draw_depths(run.records, places[run.label], run.label)]
    (folder / _PAGE).write_text(_page(runs, comparison, found, figures, maps, further), encoding="utf-8")
    tables = [folder / name for name in _TABLES if (folder / name).exists()]
    return Report(markdown, found, [*tables, *(path for _, path in (*figures, *maps)), folder / _PAGE])


def _arms(runs: Sequence[Run], comparison: Comparison | None, baseline: str | None) -> tuple[pd.DataFrame, str] | None:
    """The table of arms, where there are several seeds or a baseline, and its Markdown."""
    arms = arms_of(runs)
    chosen = None if baseline is None else find_arm(arms, baseline)
    if comparison is None or (chosen is None and all(len(arm.runs) == 1 for arm in arms)):
        return None
    frame = arms_frame(arms, chosen, comparison)
    if frame.empty:  # runs of one configuration that were scored on other samples
        return None
    return frame, arms_markdown(frame, chosen, comparison)


def _clear(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give --output a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(folder / name for name in (*_TABLES, *_FIGURES, _PAGE)), *folder.glob("depths_*.png")]:
        path.unlink(missing_ok=True)


def _write_tables(runs: Sequence[Run], comparison: Comparison | None, folder: Path) -> str:
    """Returns the table of means as Markdown."""
    tasks = task_table(runs)
    if not tasks.empty:
        tasks.to_csv(folder / "table_tasks.csv", index=False, lineterminator="\n")
    if comparison is None:
        return ""
    markdown = to_markdown(comparison)
    (folder / "table1.md").write_text(markdown, encoding="utf-8")
    (folder / "table1.csv").write_text(to_csv(comparison), encoding="utf-8")
    return markdown


def _draw_figures(
    runs: Sequence[Run], comparison: Comparison | None, questions: Comparison | None, folder: Path
) -> list[_Picture]:
    loss, qa, mean, size, time = (folder / name for name in _FIGURES)
    labels, figures = [run.label for run in runs], []
    if draw_losses(runs, loss):
        figures.append(("Training loss, smoothed over raw (the paper's Figure 2)", loss))
    if questions is not None:
        draw_means(questions, qa, title := f"QA mean over {questions.of_tasks}", labels)
        figures.append((f"{title} by length and cache budget, with standard errors (the paper's Figure 3)", qa))
    if comparison is not None:
        draw_means(comparison, mean, title := comparison.caption, labels)
        figures.append((f"{title} by length and cache budget, with standard errors (the paper's Figure 4)", mean))
        if draw_bytes(runs, comparison, size):
            figures.append((f"{title} against the size of the cache, over all lengths", size))
    if draw_times(runs, time):
        figures.append(("Training loss against training time", time))
    return figures


def _page(
    runs: Sequence[Run],
    comparison: Comparison | None,
    found: Sequence[str],
    figures: Sequence[_Picture],
    maps: Sequence[_Picture],
    further: Mapping[str, pd.DataFrame],
) -> str:
    scores, best = (None, None) if comparison is None else text_table(comparison)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # labels and folders may hold any text
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda path: b64encode(path.read_bytes()).decode("ascii")
    return environment.get_template("page.html").render(
        names=", ".join(run.label for run in runs),
        notes=found,
        comparison=comparison,
        scores=scores,
        best=best,
        figures=figures,
        maps=maps,
        further=further,
        runs=run_table(runs),
        measured=measured_table(runs),
        tasks=task_table(runs),
    )
