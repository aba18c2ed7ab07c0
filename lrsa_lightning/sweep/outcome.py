"""The outcome of a sweep: the metric of each cell and over the seeds, whether cells are comparable, and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.path_names import made_name
from lrsa_lightning.metrics import METRICS, read_rows
from lrsa_lightning.report import Run, other_samples, read_runs, write_report
from lrsa_lightning.ruler.mean_error import mean_error
from lrsa_lightning.run.config import differing
from lrsa_lightning.sweep.definition import Sweep
from lrsa_lightning.sweep.runner import Result
from lrsa_lightning.sweep.table import FINISHED, Row, aligned, cells_frame, cells_table, seeds_frame, seeds_table

_FRAMES = ("sweep_cells.csv", "sweep_seeds.csv")


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
    runs, seeds, notes = {}, {}, []
    for cell, _ in results:
        try:
            (run,) = read_runs([f"{cell.name}={runs_dir / cell.name}"])
        except InputError as error:
            notes.append(f"{cell.name} is not in the report: {error}")
        else:
            runs[cell] = run
            seeds.setdefault(cell.seed, []).append(run)
    unfair = [*_other_data(seeds), *_other_scores([run for run in runs.values() if run.scored])]
    rows = [_row(sweep, runs_dir, result, runs.get(result.cell)) for result in results]
    tables, frames = {"Cells": cells_table(sweep, rows, mark_best=not unfair)}, [cells_frame(sweep, rows)]
    if not unfair and len(seeds) > 1:
        tables["Settings, over seeds"] = seeds_table(sweep, rows)
        frames.append(seeds_frame(sweep, rows))
    files = _write_frames(frames, runs_dir / "report")
    for seed, own in seeds.items():
        folder = runs_dir / "report" / (made_name(f"seed-{seed}") if len(seeds) > 1 else "")
        try:
            report = write_report(own, folder, further=tables)
        except InputError as error:
            notes.append(f"no report in {folder}: {error}")
        else:
            files += report.files
            notes += report.notes
    said = [*_fair([*runs.values()], unfair), *_missing_metric(sweep, rows), *dict.fromkeys(notes)]
    return Outcome("\n\n".join(map(aligned, tables.values())), said, files)


def _write_frames(frames: Sequence[pd.DataFrame], folder: Path) -> list[Path]:
    """Writes sweep_cells.csv and, of several seeds, sweep_seeds.csv; one of an earlier outcome goes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in _FRAMES]
    for file in files:
        file.unlink(missing_ok=True)
    for file, frame in zip(files, frames, strict=False):
        frame.to_csv(file, index=False, lineterminator="\n")
    return files[: len(frames)]


def _other_data(seeds: Mapping[Any, Sequence[Run]]) -> list[str]:
    """One sentence for each difference in the samples, order and tokens that the cells of a seed trained on."""
    found = []
    for seed, runs in seeds.items():
        trained = [run for run in runs if run.losses[0]]  # a base model that was only scored has no data
        which = "The cells" if seed is None else f"The cells of seed {seed}"
        trained_on = [run.config.trained_on | {"the number of tokens": run.tokens} for run in trained]
        for what, values in differing(trained_on).items():
            each = ", ".join(f"{run.label} {value}" for run, value in zip(trained, values, strict=True))
            found.append(f"{which} did not train on the same data: {what} is {each}.")
    return found


def _other_scores(runs: Sequence[Run]) -> list[str]:
    if len({frozenset(run.scored) for run in runs}) > 1:
        counts = ", ".join(f"{run.label} {len(run.scored)}" for run in runs)
        return [
            f"The cells were not scored on the same RULER tasks, lengths and budgets (their number: {counts}): "
            "only the report's table, over the tasks of all cells, compares them."
        ]
    return ["The cells were not scored on the same RULER samples."] if other_samples(runs) else []


def _fair(runs: Sequence[Run], unfair: Sequence[str]) -> list[str]:
    if unfair:
        return [*unfair, "So no cell is called the best, and there is no mean over seeds."]
    trained = [run for run in runs if run.losses[0]]
    if len(trained) < 2:
        return []
    return [
        "The trained cells of a seed trained on the same samples in the same order, "
        f"{trained[0].tokens or 'an unknown number of'} tokens each."
    ]


def _row(sweep: Sweep, runs_dir: Path, result: Result, run: Run | None) -> Row:
    status = {0: FINISHED, None: "running elsewhere"}.get(result.status, f"failed ({result.status})")
    try:
        logged = read_rows(runs_dir / result.cell.name / METRICS)
    except InputError:  # the note of `conclude` says why
        logged = []
    values = [row[sweep.metric] for row in logged if sweep.metric in row]
    names = {name for row in logged for name in row}
    error = mean_error(run.records, sweep.metric) if run and values else None
    return Row(result.cell, status, values[-1] if values else None, error, run.tokens if run else None, names)


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
