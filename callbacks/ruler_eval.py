"""RULER while training runs: dense and compressed cache, before, during and after."""

import logging
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.callbacks.ruler_check import run_check
from lrsa_lightning.callbacks.ruler_report import records_path, report_check
from lrsa_lightning.data.template import TemplateName, answer_ends
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.pretrained.decoder import check_length
from lrsa_lightning.ranges import NonNegativeInt, PositiveFiniteFloat, PositiveInt, PositiveUnitInterval, checked
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.check_time import CheckTime
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.evaluation import other_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.options import refuse_official_compat
from lrsa_lightning.ruler.samples import SampleSettings
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.ruler.tasks import check_tasks, light_tasks, possible_tasks
from lrsa_lightning.step_log import write_steps

log = logging.getLogger(__name__)
_warn = rank_zero_only(log.warning)
RULER_CHECK = "RULER check"  # what Lightning's profiler calls a check in the middle of training
_CONTROL_LENGTH = 4096
_SEQUENCE_PARALLEL_GONE = (
    "is gone and ignored: each rank scores its own samples, in smaller batches where their caches do not fit"
)


class RulerEval(Callback):
    """Scores the model on RULER tasks and logs ``ruler/<task>/<length>/r<budget>``, 0..100.

    Each check also rates the references in one forward pass (``ruler_nll``, ``ruler_exact_match``). By default a check
    in the middle of training does nothing else. Predictions go to ``ruler/step-<n>.jsonl`` in the run directory and to
    Weights & Biases.
    """

    records_path = staticmethod(records_path)

    @checked
    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        lengths: Sequence[PositiveInt] | None = None,
        budgets: Sequence[PositiveUnitInterval] = (1.0, 0.5, 0.25),
        num_samples: PositiveInt = 8,
        every_n_steps: PositiveInt | None = 500,
        generation: Literal["always", "ends", "never"] = "ends",
        max_seconds: PositiveFiniteFloat | Literal["auto"] | None = "auto",
        lag_divisor: PositiveInt = 32,
        sink_size: NonNegativeInt = 16,
        batch_size: PositiveInt = 8,
        prefill_chunk_size: PositiveInt = 4096,
        sequence_parallel: Literal["auto", "always", "never"] | None = None,
        template: TemplateName | None = None,
        sources: Sources | None = None,
        skip_missing: bool = False,
        official_compat: bool | None = None,
        seed: NonNegativeInt = 42,
    ):
        """
        Args:
            tasks: RULER tasks; when None a light choice of those that fit the lengths and for which the given files
                suffice.
            lengths: prompt lengths in tokens, new tokens included; 4096 and data.seq_len when None.
            budgets: retention ratios r of the cache; 1 is dense.
            num_samples: samples of each task and length.
            every_n_steps: optimizer steps between two checks; further checks run before the first step and after the
                last. null: one check alone, after the last step.
            generation: when a check generates answers, besides rating the references: always, at the first and the
                last one, or never.
            max_seconds: time of a check, which prints what it left out. auto: 35 s for the first one, later a tenth of
                the training time between two checks, but 35 s at least; no limit where nothing is trained. null: no
                limit.
            lag_divisor: lag = length / lag_divisor.
            sink_size: sink of the compressed cache.
            batch_size: prompts decoded together; fewer where their caches do not fit in 80% of the free memory.
            prefill_chunk_size: prompt tokens in a forward pass.
            sequence_parallel: gone; ignored.
            template: base or chatml; that of the run when None.
            sources: files of some tasks: essays, squad, hotpotqa, english_words.
            skip_missing: leave out tasks whose file is not given, instead of an error.
            official_compat: gone; false is ignored, true is refused.
            seed: of the samples.

        Raises:
            InputError: a number is out of its range, a list is empty or holds a value twice, a task is unknown, a
                budget has no meaning at a length, or a file is missing or has another format.
        """
        refuse_official_compat("RulerEval.", official_compat)
        if official_compat is not None:
            _warn("RulerEval.official_compat is gone and ignored: remove it")
        if sequence_parallel is not None:
            _warn(f"RulerEval.sequence_parallel {_SEQUENCE_PARALLEL_GONE}")
        check_choice(budgets, "RulerEval.budgets")
        self._budgets, self._lengths = CacheBudgets(budgets, lag_divisor, sink_size), lengths
        if lengths is not None:
            check_choice(lengths, "RulerEval.lengths")
            self._budgets.check_lengths(lengths)
        if tasks is not None:
            check_tasks(tasks, "RulerEval.tasks")
        sources = sources or Sources()
        self._tasks = possible_tasks(light_tasks(sources) if tasks is None else tasks, sources, skip_missing)
        self._log_unfitting = log.info if tasks is None else None
        self._sources, self._seed, self._template, self._num_samples = sources, seed, template, num_samples
        self._make_evaluator = partial(
            RulerEvaluator,
            budgets=budgets,
            lag_divisor=lag_divisor,
            sink_size=sink_size,
            batch_size=batch_size,
            prefill_chunk_size=prefill_chunk_size,
        )
        self._every_n_steps, self._generation, self._time = every_n_steps, generation, CheckTime(max_seconds)
        self._effort = BestEffort("RULER's records, tables and pictures")
        self._evaluator: RulerEvaluator | None = None
        self._checked_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the samples, or reads them.

        Raises:
            InputError: a task's text does not fit a length, or the checks of a resumed run scored other samples.
        """
        data = trainer.datamodule
        template = self._template or data.run_template
        lengths = self._lengths_of(data.seq_len) if self._lengths is None else self._lengths
        config = pl_module.starting_model.load_config()
        check_length(config, max(lengths, default=0), "RulerEval.lengths")
        settings = SampleSettings(self._seed, template, self._sources)
        store = SampleStore.in_cache(data.cache_dir, data.tokenizer, settings)
        samples = store.samples_that_fit(
            product(self._tasks, lengths),
            self._num_samples,
            self._log_unfitting,
            announces=trainer.is_global_zero,
            num_workers=data.prepare_workers // trainer.world_size,
        )
        ends = answer_ends(template, data.tokenizer)
        self._evaluator = self._make_evaluator(data.tokenizer, samples, end_tokens=ends)
        if trainer.state.fn == "fit":
            self._check_earlier(trainer, samples, self._time.is_limited)

    def _lengths_of(self, seq_len: int) -> list[int]:
        """The training length and a control, where every budget has a meaning."""
        lengths = []
        for length in sorted({min(_CONTROL_LENGTH, seq_len), seq_len}):
            try:
                self._budgets.check_lengths([length])
                lengths.append(length)
            except InputError as error:
                log.warning("RULER is left out at length %d: %s", length, error)
        return lengths

    @staticmethod
    def _check_earlier(trainer: Trainer, samples: dict, may_lack: bool) -> None:
        """Checks that earlier checks of a resumed run scored these samples: a name in its curves has one meaning."""
        folder = records_path(trainer, 0).parent
        reason = other_samples(folder, samples, may_lack) if trainer.is_global_zero else None
        if reason := trainer.strategy.broadcast(reason):
            raise InputError(
                f"{reason}, which are other samples than RulerEval has now: give it its earlier num_samples, seed, "
                f"template and sources, or move {folder} away"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The run only compares a model with others. Without a step Lightning calls no hook of training.
        if trainer.max_steps == 0:
            self._check(trainer, pl_module, at_end=True, in_training=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._is_due(step) and (step == 0 or not self._was_checked(trainer, step)):
            self._check(trainer, pl_module, at_end=step == 0)
        self._checked_step = step
        self._time.training_goes_on()

    def _is_due(self, step: int) -> bool:
        return self._every_n_steps is not None and step % self._every_n_steps == 0

    @staticmethod
    def _was_checked(trainer: Trainer, step: int) -> bool:
        """Whether the resumed run has the records of this step's check."""
        return trainer.strategy.broadcast(records_path(trainer, step).exists())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self._is_due(trainer.global_step) and trainer.global_step != self._checked_step:
            write_steps(trainer, last=trainer.global_step - 1)  # callbacks after this one add to the current row
            with trainer.profiler.profile(RULER_CHECK):
                self._check(trainer, pl_module, at_end=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._checked_step:
            self._check(trainer, pl_module, at_end=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._check(trainer, pl_module, at_end=True, in_training=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    def _check(self, trainer: Trainer, pl_module: LightningModule, at_end: bool, in_training: bool = True) -> None:
        evaluator = self._evaluator
        if not evaluator.samples:
            return
        self._checked_step = trainer.global_step
        generation = self._generation == "always" or (self._generation == "ends" and at_end)
        seconds = self._time.of_next(in_training)
        records = run_check(trainer, pl_module, evaluator, generation, seconds)
        wanted = {cell: len(evaluator.samples[cell[:2]]) for cell in evaluator.cells}
        report_check(trainer, self._effort, pl_module.trained_steps, records, wanted, seconds)
        self._time.training_goes_on()
