"""The outcome of a sweep: the metric of each cell and over the seeds, whether cells are comparable, and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.metrics import METRICS, read_rows
from lrsa_lightning.path_names import made_name
from lrsa_lightning.report import Run, read_runs, write_report
from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.definition import Sweep
from lrsa_lightning.sweep.fairness import differences
from lrsa_lightning.sweep.runner import Result
from lrsa_lightning.sweep.table import FINISHED, Row, seeds_table, to_text


@dataclass(frozen=True)
class Outcome:
    """What the user sees.

    Attributes:
        table: the metric of each cell, and over the seeds where there are several.
        notes: on what is missing or not comparable.
        files: of the reports.
    """

    table: str
    notes: list[str]
    files: list[Path]


def conclude(sweep: Sweep, runs_dir: Path, results: Sequence[Result]) -> Outcome:
    """Reads the cells' runs and writes the report to ``<runs_dir>/report``: one for each seed where there are several.

    Args:
        sweep: of `read_sweep`.
        runs_dir: of the `SweepRunner`.
        results: of the `SweepRunner`.
    """
    runs, notes = {}, []
    for result in results:
        path = runs_dir / result.cell.name
        try:
            (runs[result.cell],) = read_runs([f"{result.cell.name}={path}"])
        except InputError as error:
            notes.append(f"{result.cell.name} is not in the report: {error}")
    unfair = differences(runs)
    rows = [_row(sweep, runs_dir, result, runs.get(result.cell)) for result in results]
    table = to_text(sweep, rows, mark_best=not unfair)
    if not unfair and len({cell.seed for cell in runs}) > 1:
        table += "\n\n" + seeds_table(sweep, rows)
    files = []
    for folder, own in _groups(runs, runs_dir / "report").items():
        report, further = _report(own, folder)
        files += report
        notes += further
    return Outcome(table, [*_fair(runs, unfair), *_missing_metric(sweep, rows), *dict.fromkeys(notes)], files)


def _row(sweep: Sweep, runs_dir: Path, result: Result, run: Run | None) -> Row:
    status = {0: FINISHED, None: "running elsewhere"}.get(result.status, f"failed ({result.status})")
    try:
        logged = read_rows(runs_dir / result.cell.name / METRICS)
    except InputError:  # the note of `conclude` says why
        logged = []
    values = [row[sweep.metric] for row in logged if sweep.metric in row]
    names = {name for row in logged for name in row}
    return Row(result.cell, status, values[-1] if values else None, run.tokens if run else None, names)


def _fair(runs: dict[Cell, Run], unfair: list[str]) -> list[str]:
    if unfair:
        return [*unfair, "So no cell is called the best, and there is no mean over seeds."]
    trained = [run for run in runs.values() if run.losses[0]]
    if len(trained) < 2:
        return []
    return [
        "The trained cells of a seed trained on the same samples in the same order, "
        f"{trained[0].tokens or 'an unknown number of'} tokens each."
    ]


def _missing_metric(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Where the metric is missing, the names of similar metrics that were logged."""
    lacking = [row for row in rows if row.value is None and row.status == FINISHED]
    if sweep.metric is None or not lacking:
        return []
    kind = sweep.metric.split("/")[0]
    similar = sorted({name for row in lacking for name in row.logged if name.startswith(kind)})
    names = ", ".join(name for name in similar if name.count("/") == 1) or "none of its kind"
    why = " (RULER's average needs all 13 tasks)" if sweep.metric.startswith("ruler/average") else ""
    return [f"{', '.join(row.cell.name for row in lacking)}: {sweep.metric} was not logged{why}, but {names}."]


def _groups(runs: dict[Cell, Run], folder: Path) -> dict[Path, list[Run]]:
    """The folder of each report, with its runs: a report compares the runs of one seed."""
    seeds: dict[Any, list[Run]] = {}
    for cell, run in runs.items():
        seeds.setdefault(cell.seed, []).append(run)
    return {folder / made_name(f"seed-{seed}") if len(seeds) > 1 else folder: own for seed, own in seeds.items()}


def _report(runs: list[Run], folder: Path) -> tuple[list[Path], list[str]]:
    try:
        report = write_report(runs, folder)
    except InputError as error:
        return [], [f"no report in {folder}: {error}"]
    return report.files, report.notes
