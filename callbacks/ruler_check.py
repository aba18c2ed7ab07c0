"""A RULER check: its batches, and what the log says meanwhile."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from lightning import LightningModule, Trainer

from lrsa_lightning.callbacks.stop_on_signal import raise_if_signalled
from lrsa_lightning.ruler.batches import Batch
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.progress import ProgressLines
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import Record
from lrsa_lightning.ruler.time_limit import TimeLimit

log = logging.getLogger(__name__)


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
    sizes = evaluator.batch_sizes(model, ranks, generation, tasks_share=True)
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
    is_said = False

    def show(records: Sequence[Record]) -> None:
        nonlocal is_said
        if not is_said and limit.has_measured(every):
            is_said = True
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
