"""What a sweep found: its metric for each cell and over the seeds, whether that may be compared, and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.path_names import made_name
from lrsa_lightning.report import Run, read_runs, write_report
from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.definition import Sweep
from lrsa_lightning.sweep.fairness import differences, tokens_of
from lrsa_lightning.sweep.runner import Result
from lrsa_lightning.sweep.table import Row, last_value, logged_metrics, seeds_table, to_text

_NOT_RUN = "running elsewhere"


@dataclass(frozen=True)
class Outcome:
    """What to tell the user.

    Attributes:
        table: the metric of each cell, and over the seeds where there are several.
        notes: on what is missing, or may not be compared.
        files: of the reports.
    """

    table: str
    notes: list[str]
    files: list[Path]


def conclude(sweep: Sweep, runs_dir: Path, results: Sequence[Result]) -> Outcome:
    """Reads the cells' runs; writes the report, one for each seed where there are several, to ``<runs_dir>/report``.

    Args:
        sweep: of `read_sweep`.
        runs_dir: of the `SweepRunner`.
        results: its results.
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
    return Outcome(table, [*_fair(runs, unfair), *_missing_metric(sweep, rows, runs_dir), *dict.fromkeys(notes)], files)


def _row(sweep: Sweep, runs_dir: Path, result: Result, run: Run | None) -> Row:
    status = {0: "finished", None: _NOT_RUN}.get(result.status, f"failed ({result.status})")
    value = last_value(runs_dir / result.cell.name, sweep.metric)
    return Row(result.cell, status, value, tokens_of(run) if run else None)


def _fair(runs: dict[Cell, Run], unfair: list[str]) -> list[str]:
    if unfair:
        return [*unfair, "So no cell is called the best and no mean over seeds is taken."]
    trained = [run for run in runs.values() if run.losses[0]]
    if len(trained) < 2:
        return []
    return [
        "The trained cells of a seed learned from the same samples in the same order, "
        f"{tokens_of(trained[0]) or 'an unknown number of'} tokens each."
    ]


def _missing_metric(sweep: Sweep, rows: Sequence[Row], runs_dir: Path) -> list[str]:
    """Where a metric is missing, which ones of its kind there are."""
    lacking = [row.cell for row in rows if row.value is None and row.status == "finished"]
    if sweep.metric is None or not lacking:
        return []
    kind = sweep.metric.split("/")[0]
    there = sorted({name for cell in lacking for name in logged_metrics(runs_dir / cell.name) if name.startswith(kind)})
    names = ", ".join(name for name in there if name.count("/") == 1) or "none of its kind"
    why = " (RULER's average needs all 13 tasks)" if sweep.metric.startswith("ruler/average") else ""
    return [f"{', '.join(cell.name for cell in lacking)}: {sweep.metric} was not logged{why}, but {names}."]


def _groups(runs: dict[Cell, Run], folder: Path) -> dict[Path, list[Run]]:
    """The runs of each report by its folder: only those of a seed lie side by side."""
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
