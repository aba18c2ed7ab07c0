"""A RULER check: how long it may take, its batches, and what the log says meanwhile."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Literal

from lightning import LightningModule, Trainer

from lrsa_lightning.callbacks.stop_on_signal import raise_if_signalled
from lrsa_lightning.ruler.batches import Batch
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.progress import ProgressLines
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import Record
from lrsa_lightning.ruler.time_limit import TimeLimit

log = logging.getLogger(__name__)

# Before the first step a user waits to see that the run works.
FIRST_SECONDS = 35.0
# Of the training time between two checks.
SHARE = 0.1


class CheckTime:
    """Seconds that a check may take.

    Automatically, a check in training takes `FIRST_SECONDS`, or `SHARE` of the longest training time between two checks
    so far, whichever is longer. A check without training takes the time it needs.

    Args:
        given: seconds; None: no limit; auto.
    """

    def __init__(self, given: float | Literal["auto"] | None):
        self._given = given
        self._trains_since: float | None = None
        self._longest = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether a check in training has a limit."""
        return self._given is not None

    def of_next(self, in_training: bool) -> float | None:
        """Seconds of the check that begins now; None: no limit."""
        if self._given != "auto":
            return self._given
        if not in_training:
            return None
        if self._trains_since is not None:
            self._longest = max(self._longest, monotonic() - self._trains_since)
        return max(FIRST_SECONDS, SHARE * self._longest)

    def training_goes_on(self) -> None:
        """Takes note that training begins, or goes on after a check."""
        self._trains_since = monotonic()


def run_check(
    trainer: Trainer, pl_module: LightningModule, evaluator: RulerEvaluator, generation: bool, seconds: float | None
) -> list[Record]:
    """Scores the model and returns the records of all ranks, in order. All ranks must call it.

    Args:
        trainer: of the run.
        pl_module: with the model on its device.
        evaluator: of the samples.
        generation: whether to generate answers, besides rating the references.
        seconds: of the check; None: no limit.

    Raises:
        Stopped: a signal has come.
    """
    model, ranks = pl_module.model, Ranks.of_process_group()
    sizes = evaluator.batch_sizes(model, ranks, tasks_share=True)
    groups = evaluator.groups(ranks, sizes, tasks_share=True)
    every, records = [batch for group in groups for batch in group], []
    limit = TimeLimit(seconds, trainer.strategy.broadcast)
    with trainer.precision_plugin.forward_context(), _progress(trainer, evaluator, every, generation, limit) as advance:
        batches = evaluator.evaluate(model, generation, ranks=ranks, groups=groups, limit=limit)
        while batch := pl_module.as_forward(lambda: next(batches, None)):
            records += batch
            advance(batch)
            raise_if_signalled(trainer)
    return evaluator.in_order(records)


@contextmanager
def _progress(
    trainer: Trainer, evaluator: RulerEvaluator, every: Sequence[Batch], generation: bool, limit: TimeLimit
) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Says what a check will take, and yields a function that shows that a batch is done."""
    if not trainer.is_global_zero:
        yield lambda records: None
        return
    log.info(_announcement(evaluator, generation, limit.seconds))
    is_told = False

    def show(records: Sequence[Record]) -> None:
        nonlocal is_told
        if not is_told and limit.has_measured(every):
            is_told = True
            log.info("RULER check: all samples would take about %.0f s", limit.expected(every))
        advance(f"{records[0].length}/{records[0].budget}", min(limit.rest(every), limit.left))

    with _bar_or_lines(trainer, len(every)) as advance:
        yield show


def _bar_or_lines(trainer: Trainer, total: int) -> AbstractContextManager[Callable[[str, float], None]]:
    part = getattr(trainer.progress_bar_callback, "part", None)
    if part is None:
        return nullcontext(ProgressLines("RULER check", total).advance)
    return part("RULER check", total)


def _announcement(evaluator: RulerEvaluator, generation: bool, seconds: float | None) -> str:
    budgets, places = evaluator.budgets, evaluator.samples
    number = len(budgets) * sum(map(len, places.values()))
    what = "answers" if generation else "references to rate"
    tasks, lengths = ({place[i] for place in places} for i in (0, 1))
    sizes = f"tasks: {len(tasks)}, lengths: {', '.join(map(str, sorted(lengths)))}, budgets: {', '.join(budgets)}"
    time = "no time limit" if seconds is None else f"{seconds:.0f} s at most"
    return f"RULER check: {number} {what} ({sizes}), {time} (RulerEval.max_seconds)"
