"""Notes on what a comparison lacks and on what was not the same in all runs."""

from collections.abc import Sequence
from math import isfinite

from lrsa_lightning.report.comparison import (
    AVERAGE,
    Comparison,
    budget_name,
    length_name,
    lengths_text,
    other_samples,
    range_text,
)
from lrsa_lightning.report.runs import Run
from lrsa_lightning.run.config import differing

QA_TASKS = ("qa_1", "qa_2")


def notes(runs: Sequence[Run], comparison: Comparison | None, qa: Comparison | None) -> list[str]:
    """One sentence for each thing that is missing or differs.

    Args:
        runs: of the report.
        comparison: their means; None where nothing was scored.
        qa: the means over the question answering tasks; None where the runs share none.
    """
    found = [*_missing_parts(runs), *_losses_not_finite(runs), *_earlier_steps(runs)]
    if comparison is None:
        found.append(_no_scores(runs))
    else:
        found += [
            *_not_shared(runs, comparison),
            *_left_out(comparison),
            *_gaps(comparison),
            *_other_samples(comparison, runs),
            *_other_caches(runs),
        ]
        found += _missing_questions(comparison, qa)
    return found + _other_data(runs)


def _no_scores(runs: Sequence[Run]) -> str:
    scored = [run for run in runs if run.scored]
    if not scored:
        return "No run has RULER scores: there are no tables and figures of them."
    has = "; ".join(f"{run.label} has {', '.join(_cells(run))}" for run in scored)
    return f"No task at any length was scored by all runs that have scores there, so there are no means: {has}."


def _not_shared(runs: Sequence[Run], comparison: Comparison) -> list[str]:
    return [
        f"{run.label} shares no task with the runs at its lengths ({', '.join(_cells(run))}): it is not in the means."
        for run in runs
        if run.scored and run.label not in comparison.labels
    ]


def _cells(run: Run) -> list[str]:
    return [*dict.fromkeys(f"{task}/{length_name(length)}" for task, length, _ in run.scored)]


def _missing_parts(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        if not run.scored:
            rated = " (its references were only rated)" if run.records else ""
            found.append(f"{run.label} has no RULER scores{rated}: it is not in the tables and figures of scores.")
        if not run.losses[0]:
            found.append(f"{run.label} has no training loss: it is not in the figure of losses.")
    return found


def _losses_not_finite(runs: Sequence[Run]) -> list[str]:
    return [
        f"{count} of the {len(run.losses[1])} training losses of {run.label} are no finite numbers."
        for run in runs
        if (count := sum(not isfinite(loss) for loss in run.losses[1]))
    ]


def _earlier_steps(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.label} was scored at step {run.step}, but trained for {run.losses[0][-1]} steps."
        for run in runs
        if run.step is not None and run.losses[0] and run.step < run.losses[0][-1]
    ]


def _left_out(comparison: Comparison) -> list[str]:
    lengths: dict[str, list[int]] = {}
    for length, tasks in comparison.left_out.items():
        lengths.setdefault(", ".join(tasks), []).append(length)
    found = []
    for tasks, own in lengths.items():
        without = [length for length in own if length not in comparison.tasks]
        column = f" There is no column for {lengths_text(without)}." if without else ""
        found.append(
            f"Not in the means of {lengths_text(own)}, because not every run was scored on them under each of its "
            f"budgets: {tasks}.{column}"
        )
    return found


def _gaps(comparison: Comparison) -> list[str]:
    budgets: dict[tuple[str, str], list[str]] = {}
    for (label, budget), missing in comparison.means.drop(columns=AVERAGE).isna().iterrows():
        if missing.any():
            budgets.setdefault((label, ", ".join(missing.index[missing])), []).append(budget_name(budget))
    return [
        f"{label} was not scored at {lengths} ({', '.join(own)}), so it has no average."
        for (label, lengths), own in budgets.items()
    ]


def _other_samples(comparison: Comparison, runs: Sequence[Run]) -> list[str]:
    differing: dict[int, list[str]] = {}
    for (length, task), counts in other_samples(runs).items():
        if task in comparison.tasks.get(length, ()):
            differing.setdefault(length, []).append(f"{task} ({range_text(counts)})")
    text = "; ".join(f"{length_name(length)}: {', '.join(tasks)}" for length, tasks in differing.items())
    return [f"Not the same samples in all rows (their number): {text}."] if text else []


def _other_caches(runs: Sequence[Run]) -> list[str]:
    """Sizes that give one budget another cache."""
    runs = [run for run in runs if run.cache_sizes and any(budget != "r1" for _, _, budget in run.scored)]
    found = differing([run.cache_sizes for run in runs])
    return [f"The budgets are not the same caches {_side_by_side(runs, found)}."] if found else []


def _missing_questions(comparison: Comparison, qa: Comparison | None) -> list[str]:
    if qa is None:
        return [f"No figure of question answering: the runs share no such task ({', '.join(QA_TASKS)})."]
    found = [
        f"The figure of question answering lacks {label}: no QA task was scored."
        for label in comparison.labels
        if label not in qa.labels
    ]
    if any(set(tasks) != set(QA_TASKS) for tasks in qa.tasks.values()):
        found.append(f"The figure of question answering does not have both tasks everywhere, but {qa.of_tasks}.")
    return found


def _other_data(runs: Sequence[Run]) -> list[str]:
    """Keys that give the trained runs other samples, another order or another number of tokens."""
    trained = [run for run in runs if run.losses[0]]
    known = [run for run in trained if run.config.trained_on]
    unknown = [run.label for run in trained if run not in known]
    found = []
    if unknown and len(trained) > 1:
        found.append(f"No configuration says which data {', '.join(unknown)} trained on: the data may not be the same.")
    on = [run.config.trained_on for run in known]
    # A key that an earlier version did not save says nothing.
    changed = {key: own for key, own in differing(on).items() if all(key in values for values in on)}
    if changed:
        found.append(f"The runs did not train on the same data in the same order {_side_by_side(known, changed)}.")
    return found


def _side_by_side(runs: Sequence[Run], values: dict[str, list]) -> str:
    labels = " / ".join(run.label for run in runs)
    return f"({labels}): " + "; ".join(f"{key}: {' / '.join(map(str, own))}" for key, own in values.items())
