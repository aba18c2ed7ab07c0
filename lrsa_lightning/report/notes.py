"""What a reader must know before believing a comparison: what is missing, and what was not the same."""

from collections.abc import Sequence
from math import isfinite

from lrsa_lightning.report.comparison import Comparison, budget_name, length_name, tasks_text
from lrsa_lightning.report.runs import Run, shown
from lrsa_lightning.ruler.records import Record, are_of_same_samples

QA_TASKS = ("qa_1", "qa_2")
COMPARED_COLUMNS = ["Run", "Folder", "Step", "Attention in training", "Tasks", "Lengths", "Budgets", "Samples a cell"]


def notes(runs: Sequence[Run], comparison: Comparison | None, qa: Comparison | None) -> list[str]:
    """Sentences on all that is missing or differs.

    Args:
        runs: of the report.
        comparison: their means; None where nothing was scored.
        qa: the means over the question answering tasks.
    """
    return [
        *_missing_parts(runs),
        *_losses_that_are_none(runs),
        *_earlier_steps(runs),
        *(
            []
            if comparison is None
            else [*_left_out(comparison), *_gaps(comparison), *_other_samples(runs, comparison), *_other_caches(runs)]
        ),
        *_missing_questions(comparison, qa),
        *_other_data(runs),
    ]


def _missing_parts(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        if not run.scored:
            rated = " (its references were only rated)" if run.records else ""
            found.append(f"{run.label} has no RULER scores{rated}: it is not in Table 1 and Figures 3 and 4.")
        if not run.losses[0]:
            found.append(f"{run.label} has no training loss: it is not in Figure 2.")
    return found


def _losses_that_are_none(runs: Sequence[Run]) -> list[str]:
    """Of runs some of whose losses are NaN or infinite."""
    found = []
    for run in runs:
        losses = run.losses[1]
        if none := sum(not isfinite(loss) for loss in losses):
            found.append(f"{none} of the {len(losses)} training losses of {run.label} are no finite numbers.")
    return found


def _earlier_steps(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.label} was scored at step {run.step}, but trained for {run.losses[0][-1] + 1} steps."
        for run in runs
        if run.step is not None and run.losses[0] and run.step <= run.losses[0][-1]
    ]


def _left_out(comparison: Comparison) -> list[str]:
    lengths: dict[tuple[str, ...], list[int]] = {}
    for length, tasks in comparison.left_out.items():
        lengths.setdefault(tuple(tasks), []).append(length)
    found = []
    for tasks, own in lengths.items():
        without = [length for length in own if length not in comparison.tasks]
        column = f" There is no column for {_names(without)}." if without else ""
        found.append(
            f"Not in the means of {_names(own)}, because not every run was scored on them under each of its budgets: "
            f"{', '.join(tasks)}.{column}"
        )
    return found


def _gaps(comparison: Comparison) -> list[str]:
    budgets: dict[tuple[str, str], list[str]] = {}
    for label, budget in comparison.rows:
        missing = [length for length in comparison.lengths if (label, budget, length) not in comparison.cells]
        if missing:
            budgets.setdefault((label, _names(missing)), []).append(budget_name(budget))
    return [
        f"{label} was not scored at {lengths} ({', '.join(own)}), so it has no average."
        for (label, lengths), own in budgets.items()
    ]


def _other_samples(runs: Sequence[Run], comparison: Comparison) -> list[str]:
    """Cells whose runs or budgets were not scored on the same samples."""
    samples: dict[tuple[int, str], dict[tuple[str, str], list[Record]]] = {}
    for run in runs:
        for record in run.records:
            if record.score is not None and record.task in comparison.tasks.get(record.length, ()):
                own = samples.setdefault((record.length, record.task), {})
                own.setdefault((run.label, record.budget), []).append(record)
    differing: dict[int, list[str]] = {}
    for (length, task), rows in sorted(samples.items()):
        counts = sorted(map(len, rows.values()))
        if not are_of_same_samples(rows.values()):
            differing.setdefault(length, []).append(f"{task} ({_span(counts)})")
    text = "; ".join(f"{length_name(length)}: {', '.join(tasks)}" for length, tasks in differing.items())
    return [f"Not the same samples in all rows (their number): {text}."] if text else []


def _other_caches(runs: Sequence[Run]) -> list[str]:
    """Sizes that give one budget another cache."""
    runs = [run for run in runs if run.cache_sizes and any(budget != "r1" for _, _, budget in run.scored)]
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.cache_sizes):
        values = [str(run.cache_sizes.get(key)) for run in runs]
        if len(set(values)) > 1:
            found.append(f"{key}: {' / '.join(values)}")
    labels = " / ".join(run.label for run in runs)
    return [f"The budgets are not the same caches ({labels}): {'; '.join(found)}."] if found else []


def _missing_questions(comparison: Comparison | None, qa: Comparison | None) -> list[str]:
    if comparison is None:
        return ["No run has RULER scores: there is no Table 1 and no Figure 3 and 4."]
    if qa is None:
        return [f"No Figure 3: the runs share no question answering task ({', '.join(QA_TASKS)})."]
    found = [f"Figure 3 lacks {label}: no QA task was scored." for label in comparison.labels if label not in qa.labels]
    if any(set(tasks) != set(QA_TASKS) for tasks in qa.tasks.values()):
        found.append(f"Figure 3 does not have both QA tasks everywhere, but {qa.of_tasks}.")
    return found


def _other_data(runs: Sequence[Run]) -> list[str]:
    """Keys that give the trained runs other samples, another order or another number of tokens."""
    unknown = [run.label for run in runs if run.losses[0] and not run.trained_on]
    trained = [run for run in runs if run.trained_on and run.losses[0]]
    keys = [key for key in (trained[0].trained_on if trained else ()) if all(key in r.trained_on for r in trained)]
    differing = [key for key in keys if len({repr(run.trained_on[key]) for run in trained}) > 1]
    found = []
    if unknown and len(trained) + len(unknown) > 1:
        found.append(f"No configuration says what {', '.join(unknown)} learned from: the data may not be the same.")
    if not differing:
        return found
    values = [f"{key}: {' / '.join(str(run.trained_on[key]) for run in trained)}" for key in differing]
    labels = " / ".join(run.label for run in trained)
    return [*found, f"The runs did not learn from the same data in the same order ({labels}): {'; '.join(values)}."]


def what_was_compared(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each run, under `COMPARED_COLUMNS`."""
    rows = []
    for run in runs:
        cells = list(run.cells.values())
        counts = sorted({cell.count for cell in cells})
        samples = _span(counts) if counts else ""
        tasks = tasks_text(dict.fromkeys(cell.task for cell in cells)) if cells else ""
        lengths = _names(sorted({cell.length for cell in cells}))
        budgets = ", ".join(map(budget_name, dict.fromkeys(cell.budget for cell in cells)))
        step = "" if run.step is None else str(run.step)
        rows.append([run.label, shown(str(run.path)), step, run.attention, tasks, lengths, budgets, samples])
    return rows


def _names(lengths: Sequence[int]) -> str:
    return ", ".join(map(length_name, lengths))


def _span(counts: Sequence[int]) -> str:
    """The least and the most of ascending numbers."""
    return str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
