"""Whether the cells of a seed learned from the same samples, in the same order, and from as many tokens."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from lrsa_lightning.callbacks.metrics_file import read_metric
from lrsa_lightning.report import Run
from lrsa_lightning.ruler.records import CellName, Record, are_of_same_samples
from lrsa_lightning.sweep.cells import Cell


def differences(runs: Mapping[Cell, Run]) -> list[str]:
    """A sentence for each seed whose trained cells learned from other data or other amounts of it, and one where the
    cells were not scored on the same RULER tasks, lengths, budgets and samples."""
    seeds: dict[Any, list[Run]] = {}
    for cell, run in runs.items():
        if run.losses[0]:  # a base model that was only scored learned nothing
            seeds.setdefault(cell.seed, []).append(run)
    found = []
    for seed, own in seeds.items():
        which = "The cells" if seed is None else f"The cells of seed {seed}"
        for what, values in _differing(own).items():
            each = ", ".join(f"{run.label} {value}" for run, value in zip(own, values, strict=True))
            found.append(f"{which} did not learn from the same data: {what} is {each}.")
    scored = {run.label: set(run.scored) for run in runs.values() if run.scored}
    if len(set(map(frozenset, scored.values()))) > 1:
        counts = ", ".join(f"{label} {len(own)}" for label, own in scored.items())
        found.append(
            f"The cells were not scored on the same RULER tasks, lengths and budgets (their number: {counts}): "
            "only the report's table, over those they share, compares them."
        )
    elif _other_samples(runs.values()):
        found.append("The cells were not scored on the same RULER samples.")
    return found


def _other_samples(runs: Iterable[Run]) -> bool:
    """Whether a task at some length was scored on other samples in some run."""
    places: dict[tuple[str, int], list[list[Record]]] = {}
    for run in runs:
        own: dict[CellName, list[Record]] = {}
        for record in run.records:
            if record.score is not None:
                own.setdefault(record.cell, []).append(record)
        for (task, length, _), records in own.items():
            places.setdefault((task, length), []).append(records)
    return not all(map(are_of_same_samples, places.values()))


def _differing(runs: list[Run]) -> dict[str, list[Any]]:
    """The values, run by run, of what is not the same in all."""
    keys = dict.fromkeys(key for run in runs for key in run.trained_on)
    values = {key: [run.trained_on.get(key) for run in runs] for key in keys}
    values["the number of tokens"] = [tokens_of(run) for run in runs]
    return {key: own for key, own in values.items() if len(set(map(repr, own))) > 1}


def tokens_of(run: Run) -> int | None:
    """Tokens it learned from; None where it logged none."""
    file = run.path / "metrics.jsonl"
    counts = read_metric(file, "train/tokens")[1] if file.exists() else []
    return int(counts[-1]) if counts and isinstance(counts[-1], int | float) and isfinite(counts[-1]) else None
