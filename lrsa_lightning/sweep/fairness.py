"""Whether the cells of a seed trained on the same samples, in the same order, and on as many tokens."""

from collections.abc import Mapping
from typing import Any

from lrsa_lightning.report import Run, other_samples
from lrsa_lightning.run_config import differing
from lrsa_lightning.sweep.cells import Cell


def differences(runs: Mapping[Cell, Run]) -> list[str]:
    """One sentence for each difference in the data of a seed's trained cells, and for other RULER tasks or samples."""
    seeds: dict[Any, list[Run]] = {}
    for cell, run in runs.items():
        if run.losses[0]:  # a base model that was only scored has no data
            seeds.setdefault(cell.seed, []).append(run)
    found = []
    for seed, own in seeds.items():
        which = "The cells" if seed is None else f"The cells of seed {seed}"
        trained_on = [run.config.trained_on | {"the number of tokens": run.tokens} for run in own]
        for what, values in differing(trained_on).items():
            each = ", ".join(f"{run.label} {value}" for run, value in zip(own, values, strict=True))
            found.append(f"{which} did not train on the same data: {what} is {each}.")
    return [*found, *_other_scores([run for run in runs.values() if run.scored])]


def _other_scores(runs: list[Run]) -> list[str]:
    if len({frozenset(run.scored) for run in runs}) > 1:
        counts = ", ".join(f"{run.label} {len(run.scored)}" for run in runs)
        return [
            f"The cells were not scored on the same RULER tasks, lengths and budgets (their number: {counts}): "
            "only the report's table, over the tasks of all cells, compares them."
        ]
    return ["The cells were not scored on the same RULER samples."] if other_samples(runs) else []
