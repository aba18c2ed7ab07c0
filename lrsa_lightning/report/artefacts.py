"""Writes all that a report consists of into a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrsa_lightning.errors import InputError
from lrsa_lightning.report.comparison import Comparison, compare
from lrsa_lightning.report.figures import draw_losses, draw_means
from lrsa_lightning.report.notes import QA_TASKS, notes
from lrsa_lightning.report.page import Content, to_html
from lrsa_lightning.report.runs import Run
from lrsa_lightning.report.tables import tasks_csv, to_csv, to_markdown
from lrsa_lightning.ruler.heat_map import draw_depths

_TABLES = ("table1.md", "table1.csv", "table_tasks.csv")
_FIGURES = ("fig2_loss.png", "fig3_qa.png", "fig4_mean.png")
_PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        markdown: Table 1; empty where nothing was scored.
        notes: on what is missing or differs.
        files: in the order of the page.
    """

    markdown: str
    notes: list[str]
    files: list[Path]


def write_report(runs: Sequence[Run], folder: Path) -> Report:
    """Writes tables, figures and page; an earlier report's files that this one lacks are removed.

    Args:
        runs: of `read_runs`.
        folder: made where it is not there.

    Raises:
        InputError: the runs share no task at any length, or the folder is a file.
    """
    comparison, qa = compare(runs), _compare_questions(runs)
    content = Content(runs, comparison, notes(runs, comparison, qa))
    _clear(folder)
    markdown = _write_tables(runs, comparison, folder)
    _draw_figures(content, qa, folder)
    for run in runs:
        if (path := draw_depths(run.records, folder / f"depths_{run.file_stem}.png")) is not None:
            content.maps.append((run.label, path))
    (folder / _PAGE).write_text(to_html(content), encoding="utf-8")
    tables = [folder / name for name in _TABLES if (folder / name).exists()]
    pictures = [path for _, path in (*content.figures, *content.maps)]
    return Report(markdown, content.notes, [*tables, *pictures, folder / _PAGE])


def _compare_questions(runs: Sequence[Run]) -> Comparison | None:
    try:
        return compare(runs, QA_TASKS)
    except InputError:  # they share none: the notes say so
        return None


def _clear(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give --output a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(folder / name for name in (*_TABLES, *_FIGURES, _PAGE)), *folder.glob("depths_*.png")]:
        path.unlink(missing_ok=True)


def _write_tables(runs: Sequence[Run], comparison: Comparison | None, folder: Path) -> str:
    markdown = ""
    if comparison is not None:
        markdown = to_markdown(comparison)
        (folder / "table1.md").write_text(markdown, encoding="utf-8")
        (folder / "table1.csv").write_text(to_csv(comparison), encoding="utf-8")
    if any(run.records for run in runs):
        (folder / "table_tasks.csv").write_text(tasks_csv(runs), encoding="utf-8")
    return markdown


def _draw_figures(content: Content, qa: Comparison | None, folder: Path) -> None:
    loss, questions, mean = (folder / name for name in _FIGURES)
    runs, labels = content.runs, [run.label for run in content.runs]
    if draw_losses(runs, loss) is not None:
        content.figures.append(("Figure 2: training loss, smoothed over raw", loss))
    if qa is not None:
        draw_means(qa, questions, title := f"QA mean over {qa.of_tasks}", labels)
        content.figures.append((f"Figure 3: {title}, with standard errors", questions))
    if content.comparison is not None:
        draw_means(content.comparison, mean, title := content.comparison.caption, labels)
        content.figures.append((f"Figure 4: {title}, with standard errors", mean))
