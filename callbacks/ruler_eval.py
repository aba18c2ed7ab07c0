"""RULER while training runs: dense and compressed cache, before, during and after."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import monotonic
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lrsa_lightning.callbacks.stop_on_signal import raise_if_signalled
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.disk import BestEffort
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import (
    NonNegativeInt,
    PositiveFiniteFloat,
    PositiveInt,
    PositiveUnitInterval,
    checked,
)
from lrsa_lightning.ruler.sources import Sources


class RulerEval(Callback):
    """Scores the model on RULER tasks and logs ``ruler/<task>/<length>/r<budget>``, 0..100.

    Each check also rates the references in one forward pass (``ruler_nll``, ``ruler_exact_match``), which is all that
    a check in the middle of training does unless it is told to generate. Predictions go to
    ``ruler/step-<n>.jsonl`` in the run directory and to Weights & Biases.
    """

    @checked
    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        lengths: Sequence[PositiveInt] | None = None,
        budgets: Sequence[PositiveUnitInterval] = (1.0, 0.5, 0.25),
        num_samples: PositiveInt = 8,
        every_n_steps: PositiveInt = 500,
        generation: Literal["always", "ends", "never"] = "ends",
        max_seconds: PositiveFiniteFloat | None = None,
        lag_divisor: PositiveInt = 32,
        sink_size: NonNegativeInt = 16,
        batch_size: PositiveInt = 8,
        prefill_chunk_size: PositiveInt = 4096,
        sequence_parallel: Literal["auto", "always", "never"] = "auto",
        template: TemplateName | None = None,
        sources: Sources | None = None,
        skip_missing: bool = False,
        official_compat: bool = False,
        seed: NonNegativeInt = 42,
    ):
        """
        Args:
            tasks: RULER tasks; when None a light choice of those that fit the lengths and need no file but the given
                ones.
            lengths: prompt lengths in tokens, new tokens included; 4096 and data.seq_len when None.
            budgets: retention ratios r of the cache; 1 is dense.
            num_samples: samples of each task and length.
            every_n_steps: optimizer steps between two checks; it also runs before the first and after the last.
            generation: when answers are generated, besides rating the references: at every check, at the first and the
                last one, or never.
            max_seconds: of a check, asked between tasks, lengths and budgets; what was left out is said.
            lag_divisor: lag = length / lag_divisor.
            sink_size: sink of the compressed cache.
            batch_size: prompts decoded together.
            prefill_chunk_size: prompt tokens a forward pass.
            sequence_parallel: whether ranks that share sequences in training score samples together, each with the
                cache of its share of the heads, or each its own samples, which is faster: auto shares where the cache
                of a batch is larger than what is free on a device.
            template: base or chatml; data.template when None.
            sources: files some tasks are made from: essays, squad, hotpotqa, english_words.
            skip_missing: leave tasks out whose file was not given, instead of an error.
            official_compat: sizes and orders of the samples as in RULER's own code.
            seed: of the samples.

        Raises:
            InputError: a number out of its range, an empty list or a value in it twice, an unknown task, a length at
                which a budget is not what it says, a file that is missing or holds something else.
        """
        self.tasks = tasks
        self.lengths = lengths
        self.budgets = budgets
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.generation = generation
        self.max_seconds = max_seconds
        self.lag_divisor = lag_divisor
        self.sink_size = sink_size
        self.batch_size = batch_size
        self.prefill_chunk_size = prefill_chunk_size
        self.sequence_parallel = sequence_parallel
        self.template = template
        self.sources = sources or Sources()
        self.skip_missing = skip_missing
        self.official_compat = official_compat
        self.seed = seed
        self._plan = self._make_plan()
        self._evaluator = None
        self._sharing = None
        self._checked_step = -1
        self._effort = BestEffort("RULER's records, tables and pictures")

    def _make_plan(self):
        from lrsa_lightning.ruler.budgets import CacheBudgets
        from lrsa_lightning.ruler.choices import check_choice
        from lrsa_lightning.ruler.plan import Plan

        check_choice(self.budgets, "RulerEval.budgets")
        budgets = CacheBudgets(self.budgets, self.lag_divisor, self.sink_size)
        return Plan(self.tasks, self.lengths, budgets, self.sources, self.skip_missing)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the samples, on one process of a node, or reads them.

        Raises:
            InputError: a length that a task's text does not fit, heads that the ranks cannot share, or a resumed run
                whose checks were made on other samples.
        """
        from lrsa_lightning.pretrained import check_length, load_config
        from lrsa_lightning.ruler.evaluator import RulerEvaluator, answer_ends
        from lrsa_lightning.ruler.samples import SampleSettings
        from lrsa_lightning.ruler.sharing import Sharing
        from lrsa_lightning.ruler.store import SampleStore

        data = trainer.datamodule
        template = self.template or data.template
        lengths = self._plan.lengths(data.seq_len)
        config = load_config(pl_module.name_or_path, pl_module.from_config, pl_module.rope_parameters)
        check_length(config, max(lengths, default=0), "RulerEval.lengths")
        shares = isinstance(trainer.strategy, SequenceParallelStrategy)
        size = trainer.strategy.sequence_parallel.size if shares else 1
        self._sharing = Sharing(self.sequence_parallel, size, config)
        settings = SampleSettings(self.seed, template, self.sources, self.official_compat)
        store = SampleStore.in_cache(data.cache_dir, data.tokenizer, settings)
        if trainer.local_rank > 0:
            trainer.strategy.barrier("RULER samples")
        samples = self._plan.samples(store, lengths, self.num_samples)
        if trainer.local_rank == 0:
            trainer.strategy.barrier("RULER samples")
        self._evaluator = RulerEvaluator(
            data.tokenizer,
            samples,
            self.budgets,
            self.lag_divisor,
            self.sink_size,
            self.batch_size,
            self.prefill_chunk_size,
            end_tokens=answer_ends(template, data.tokenizer),
        )
        if trainer.state.fn == "fit":
            self._check_earlier(trainer, samples)

    @staticmethod
    def _check_earlier(trainer: Trainer, samples: dict) -> None:
        """Whether a run that is resumed was scored on these samples: one name in its curves means one thing."""
        from lrsa_lightning.ruler.evaluation import other_samples

        folder = RulerEval.records_path(trainer, 0).parent
        reason = other_samples(folder, samples) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):
            raise InputError(
                f"{reason}, which are other samples than RulerEval has now: give it the num_samples, seed, template, "
                f"sources and official_compat of then, or move {folder} away"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A model that is only compared with others: without a step Lightning calls no hook of training.
        if trainer.max_steps == 0:
            self._check(trainer, pl_module, at_end=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        due = step == 0 or (step % self.every_n_steps == 0 and not self._was_checked(trainer, step))
        if due:
            self._check(trainer, pl_module, at_end=step == 0)
        self._checked_step = step

    @classmethod
    def _was_checked(cls, trainer: Trainer, step: int) -> bool:
        """Whether the run that is resumed got to the check of this step."""
        return trainer.strategy.broadcast(cls.records_path(trainer, step).exists())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._checked_step:
            self._check(trainer, pl_module, at_end=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._checked_step:
            self._check(trainer, pl_module, at_end=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._check(trainer, pl_module, at_end=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    @staticmethod
    def records_path(trainer: Trainer, step: int) -> Path:
        """Where the predictions of a step's check lie once it is made."""
        return Path(trainer.default_root_dir) / "ruler" / f"step-{step:06d}.jsonl"

    def _check(self, trainer: Trainer, pl_module: LightningModule, at_end: bool) -> None:
        from lrsa_lightning.ruler.results import cell_scores, metrics
        from lrsa_lightning.ruler.sharing import Share

        if not self._evaluator.samples:
            return
        self._checked_step = trainer.global_step
        generation = self.generation == "always" or (self.generation == "ends" and at_end)
        left_out, records = dict.fromkeys(self._evaluator.cells), []
        share, together = Share.of_process_group(), self._sharing.shares(self._evaluator, pl_module.model)
        with (
            trainer.precision_plugin.forward_context(),
            _progress(trainer, self._evaluator.num_batches(share, together)) as advance,
        ):
            stop = self._out_of_time(trainer)
            shares = {"share": share, "together": together}
            batches = self._evaluator.evaluate(pl_module.model, generation, **shares, stop=stop)
            while batch := pl_module.as_forward(lambda: next(batches, None)):
                records += batch
                left_out.pop(batch[0].cell, None)
                advance()
                raise_if_signalled(trainer)
        figures = metrics(cell_scores(records))
        # What ModelCheckpoint and the like may monitor.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        if trainer.is_global_zero:
            self._report(trainer, pl_module.trained_steps, records, figures, list(left_out))

    def _out_of_time(self, trainer: Trainer) -> Callable[[], bool]:
        """Whether the time is up; the first process's clock decides for all."""
        deadline = monotonic() + (self.max_seconds or float("inf"))
        return lambda: trainer.strategy.broadcast(monotonic() > deadline)

    def _report(self, trainer: Trainer, steps: int, records: list, figures: dict[str, float], left_out: list) -> None:
        from lrsa_lightning.ruler.heat_map import draw_depths
        from lrsa_lightning.ruler.results import write_records

        path, picture = self.records_path(trainer, steps), None
        with self._effort.attempt():
            write_records(path, records)
            picture = draw_depths(records, path.with_name(f"{path.stem}-depths.png"))
        # Lightning counts the steps it logs from 0: the scores after step n stand beside the loss of step n.
        step = max(0, steps - 1)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
            with self._effort.attempt():
                _log_records(logger, records, picture, step)
        trainer.print(summary(steps, figures, left_out, self.max_seconds))


def _log_records(logger: Logger, records: list, picture: Path | None, step: int) -> None:
    """As a table and a picture, where the logger has such."""
    from lrsa_lightning.ruler.results import table

    if hasattr(logger, "log_table"):
        columns, rows = table(records)
        logger.log_table("ruler_predictions", columns=columns, data=rows, step=step)
        if picture is not None:
            logger.log_image("ruler_depths", [str(picture)], step=step)


def _progress(trainer: Trainer, total: int) -> AbstractContextManager[Callable[[], None]]:
    part = getattr(trainer.progress_bar_callback, "part", None)
    return part("RULER", total) if part is not None else nullcontext(lambda: None)


def summary(step: int, figures: dict[str, float], left_out: list, max_seconds: float | None) -> str:
    """The scores of a check, or the share of references it would write where nothing was generated."""
    from lrsa_lightning.ruler.summary import score_table

    generated = any(name.startswith("ruler/") for name in figures)
    what, figure = ("RULER", "ruler") if generated else ("RULER (references, teacher-forced)", "ruler_exact_match")
    text = f"{what} at step {step}\n{score_table(figures, figure)}"
    if left_out:
        names = ", ".join(f"{task}/{length}/{budget}" for task, length, budget in left_out)
        text += f"\nleft out after {max_seconds:g} s (max_seconds): {names}"
    return text
