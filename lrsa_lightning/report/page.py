"""The report as one HTML page that needs nothing else: pictures inside, no scripts, light and dark."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from lrsa_lightning.report.comparison import Comparison
from lrsa_lightning.report.notes import COMPARED_COLUMNS, what_was_compared
from lrsa_lightning.report.runs import Run
from lrsa_lightning.report.tables import TASK_COLUMNS, header, task_rows, text_rows

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #fff; --line: #d8dbe0; --soft: #f4f5f7; --dim: #5f6670; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --page: #16181c; --line: #3a3f47; --soft: #22262c; --dim: #a0a7b1; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1.25rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); } .number { text-align: right; }
tr.group td { border-top: 2px solid var(--dim); }
figcaption, .dim { color: var(--dim); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.maps { display: flex; flex-wrap: wrap; gap: 1.5rem; } .maps figure { margin: 0; } .maps img { max-height: 28rem; }
.notes { background: var(--soft); border-left: 4px solid #d9822b; padding: .6rem 1rem .6rem 2rem; margin: 0; }
details { margin-top: 1.5rem; } summary { cursor: pointer; }
"""


@dataclass
class Content:
    """What the page shows.

    Attributes:
        runs: of the report.
        comparison: their means; None where nothing was scored.
        notes: on what is missing.
        figures: caption and PNG.
        maps: caption and PNG of the heat maps by depth.
    """

    runs: Sequence[Run]
    comparison: Comparison | None
    notes: list[str]
    figures: list[tuple[str, Path]] = field(default_factory=list)
    maps: list[tuple[str, Path]] = field(default_factory=list)


def to_html(content: Content) -> str:
    """The whole page."""
    names = escape(", ".join(run.label for run in content.runs))
    parts = [
        _notes(content.notes),
        "" if content.comparison is None else _scores(content.comparison),
        *(_figure(*figure) for figure in content.figures),
        _maps(content.maps),
        "<h2>What was compared</h2>" + _table(COMPARED_COLUMNS, what_was_compared(content.runs), numbers_from=99),
        _all_cells(content.runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>RULER report: {names}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>RULER report</h1>\n<p class="dim">{names}</p>\n{chr(10).join(filter(None, parts))}\n</body>\n</html>\n'
    )


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<h2>Notes</h2><ul class="notes">{items}</ul>' if items else ""


def _scores(comparison: Comparison) -> str:
    table = _table(header(comparison), text_rows(comparison, "<b>{}</b>"), group=1, markup_from=2)
    return (
        f"<h2>Table 1</h2><p>{escape(comparison.caption)}, 0 to 100</p>{table}"
        '<p class="dim">Budget: how many times smaller the cache is. Avg: mean over the lengths. Bold: the best run '
        "of a column and budget. Standard errors are in table1.csv.</p>"
    )


def _maps(maps: Sequence[tuple[str, Path]]) -> str:
    pictures = "".join(_figure(*one) for one in maps)
    explained = "How many needles were found, by their place in the context. r: share of the cache kept, r0.5 is 2x."
    return f'<h2>Score by depth</h2><p class="dim">{explained}</p><div class="maps">{pictures}</div>' if maps else ""


def _all_cells(runs: Sequence[Run]) -> str:
    rows = task_rows(runs)
    if not rows:
        return ""
    return f"<details><summary>All {len(rows)} cells, task by task</summary>{_table(TASK_COLUMNS, rows, 4)}</details>"


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers_from: int = 2,
    group: int | None = None,
    markup_from: int = 99,
) -> str:
    """A table.

    Args:
        columns: their names.
        rows: their cells.
        numbers_from: the first column of numbers, to the right.
        group: a column; where its text changes, a line is drawn.
        markup_from: the first column whose cells are HTML already.
    """
    lines, before = [], None
    for row in rows:
        texts = [text if column >= markup_from else escape(text) for column, text in enumerate(row)]
        changes = group is not None and before not in (None, row[group])
        cells = "".join(f"<td{_side(column, numbers_from)}>{text}</td>" for column, text in enumerate(texts))
        lines.append(f'<tr class="group">{cells}</tr>' if changes else f"<tr>{cells}</tr>")
        before = None if group is None else row[group]
    top = "".join(f"<th{_side(column, numbers_from)}>{escape(name)}</th>" for column, name in enumerate(columns))
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _side(column: int, numbers_from: int) -> str:
    return ' class="number"' if column >= numbers_from else ""


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
