"""Makes the paper's artefacts from runs: tables of scores, loss curves, scores against length, and a page of them."""

from lrsa_lightning.report.artefacts import Report, write_report
from lrsa_lightning.report.comparison import compare, other_samples
from lrsa_lightning.report.figures import draw_losses
from lrsa_lightning.report.kept import keep
from lrsa_lightning.report.runs import Run, read_runs
from lrsa_lightning.report.tables import to_csv, to_markdown

__all__ = [
    "Report",
    "Run",
    "compare",
    "draw_losses",
    "keep",
    "other_samples",
    "read_runs",
    "to_csv",
    "to_markdown",
    "write_report",
]
