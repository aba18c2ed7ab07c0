"""Arms of an experiment: runs that differ in their seed alone, with errors over samples and over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev

from lrsa_lightning.errors import InputError
from lrsa_lightning.report.comparison import AVERAGE, Comparison, length_name
from lrsa_lightning.report.runs import Run

# A column of a table: the weight of each task and length in its mean.
Weights = Mapping[tuple[str, int], float]
# Scores 0..100 of a run under one budget, by task and length, by sample.
Scores = dict[tuple[str, int], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs of one configuration.

    Attributes:
        label: of the first run.
        runs: one for each seed.
    """

    label: str
    runs: list[Run]

    def scores(self, budget: str) -> list[Scores]:
        """Of each run; only samples that all of them have."""
        of_runs = [_scores(run, budget) for run in self.runs]
        shared = {cell: set.intersection(*(set(run.get(cell, ())) for run in of_runs)) for cell in of_runs[0]}
        return [{cell: {i: run[cell][i] for i in samples} for cell, samples in shared.items()} for run in of_runs]


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks, samples and seeds, or a difference of two.

    Attributes:
        mean: 0..100, or a difference.
        of_samples: standard error over the samples, for these very weights; None for single samples.
        of_seeds: standard error over the seeds, for these very samples; None for a single seed.
    """

    mean: float
    of_samples: float | None
    of_seeds: float | None


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Groups the scored runs whose configurations differ in the seed alone; a run without one is an arm of its own."""
    arms: dict[object, Arm] = {}
    for run in runs:
        if run.scored:
            known = repr((sorted(run.config.but_seed.items()), run.step)) if run.config.but_seed else run.label
            arms.setdefault(known, Arm(run.label, [])).runs.append(run)
    return [*arms.values()]


def find_arm(arms: Sequence[Arm], label: str) -> Arm:
    """The arm with a run of that name.

    Raises:
        InputError: there is none.
    """
    for arm in arms:
        if label in (run.label for run in arm.runs):
            return arm
    raise InputError(
        f"--baseline {label} is no scored run of the report: give one of {', '.join(a.label for a in arms)}"
    )


def columns_of(comparison: Comparison) -> dict[str, Weights]:
    """Means over the common tasks of each length and over the lengths, and each task alone, as vt/4K."""
    columns: dict[str, Weights] = {}
    for length, tasks in comparison.tasks.items():
        columns[length_name(length)] = {(task, length): 1 / len(tasks) for task in tasks}
    average = {cell: weight / len(columns) for own in columns.values() for cell, weight in own.items()}
    columns[AVERAGE] = average
    return columns | {f"{task}/{length_name(length)}": {(task, length): 1.0} for task, length in average}


def estimate(arm: Sequence[Scores], weights: Weights) -> Estimate | None:
    """The mean of an arm's runs; None where they lack a task or length."""
    if not _has(arm, weights):
        return None
    return Estimate(_mean(arm, weights), _of_samples(_over_seeds(arm, weights), weights), _of_seeds(arm, weights))


def difference(arm: Sequence[Scores], baseline: Sequence[Scores], weights: Weights) -> Estimate | None:
    """An arm less the baseline, sample by sample; None where they share no sample of a task or length.

    The runs of an arm are averaged for each sample first. The seeds of the two arms count as independent.
    """
    if not (_has(arm, weights) and _has(baseline, weights)):
        return None
    of_arm, of_baseline = _over_seeds(arm, weights), _over_seeds(baseline, weights)
    paired = {
        cell: {i: score - of_baseline[cell][i] for i, score in of_arm[cell].items() if i in of_baseline[cell]}
        for cell in weights
    }
    if not all(paired.values()):
        return None
    errors = [_of_seeds(one, weights) for one in (arm, baseline)]
    of_seeds = None if None in errors else sum(error**2 for error in errors) ** 0.5
    return Estimate(_mean([paired], weights), _of_samples(paired, weights), of_seeds)


def _scores(run: Run, budget: str) -> Scores:
    found: Scores = {}
    for record in run.records:
        if record.budget == budget and record.score is not None and isfinite(record.score):
            found.setdefault((record.task, record.length), {})[record.id] = 100 * record.score
    return found


def _has(arm: Sequence[Scores], weights: Weights) -> bool:
    return all(run.get(cell) for run in arm for cell in weights)


def _mean(runs: Sequence[Scores], weights: Weights) -> float:
    return fmean(sum(weight * fmean(run[cell].values()) for cell, weight in weights.items()) for run in runs)


def _over_seeds(runs: Sequence[Scores], cells: Iterable[tuple[str, int]]) -> Scores:
    return {cell: {sample: fmean(run[cell][sample] for run in runs) for sample in runs[0][cell]} for cell in cells}


def _of_samples(scores: Scores, weights: Weights) -> float | None:
    if any(len(scores[cell]) < 2 for cell in weights):
        return None
    return (
        sum((weight * stdev(scores[cell].values())) ** 2 / len(scores[cell]) for cell, weight in weights.items()) ** 0.5
    )


def _of_seeds(runs: Sequence[Scores], weights: Weights) -> float | None:
    return None if len(runs) < 2 else stdev(_mean([run], weights) for run in runs) / len(runs) ** 0.5
