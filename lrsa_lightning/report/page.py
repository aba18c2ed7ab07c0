"""The report as one HTML page, made from ``page.html``."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lrsa_lightning.report.comparison import Comparison
from lrsa_lightning.report.runs import Run
from lrsa_lightning.report.tables import run_table, task_table, text_table

Picture = tuple[str, Path]  # caption and PNG


def to_html(
    runs: Sequence[Run],
    comparison: Comparison | None,
    notes: Sequence[str],
    figures: Sequence[Picture],
    maps: Sequence[Picture],
) -> str:
    """The page as text, with its pictures inside.

    Args:
        runs: of the report.
        comparison: their means; None where nothing was scored.
        notes: on what is missing.
        figures: losses and means.
        maps: heat maps by depth.
    """
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
        notes=notes,
        comparison=comparison,
        scores=scores,
        best=best,
        figures=figures,
        maps=maps,
        runs=run_table(runs),
        tasks=task_table(runs),
    )
