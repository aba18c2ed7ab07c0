"""The standard error of a RULER metric over its samples, also where the metric is a mean over tasks and budgets."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean, stdev

from lrsa_lightning.ruler.records import Record

_MEANS = ("subset_mean", "average")


def mean_error(records: Iterable[Record], metric: str) -> float | None:
    """The standard error of a metric ``ruler/<task or mean>[/<length>/<budget>]``, on its scale from 0 to 100.

    Budgets share their samples: a sample counts once, with its mean over the budgets. Tasks and lengths do not.

    Args:
        records: of one check.
        metric: a name of `results.metrics`.

    Returns:
        None for another metric, and where a task has fewer than two samples at a length.
    """
    samples: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.score is not None and _has(record, metric):
            samples[record.task, record.length][record.id].append(100 * record.score)
    means = [[fmean(scores) for scores in own.values()] for own in samples.values()]
    if not means or min(map(len, means)) < 2:
        return None
    return sum(stdev(own) ** 2 / len(own) for own in means) ** 0.5 / len(means)


def _has(record: Record, metric: str) -> bool:
    """Whether a metric is made of this record's score, among others."""
    places = ("", f"/{record.length}/{record.budget}")
    return metric in {f"ruler/{task}{place}" for task in (record.task, *_MEANS) for place in places}
