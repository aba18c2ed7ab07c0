"""RULER while training runs: dense and compressed cache, before, during and after."""

from collections.abc import Sequence

import torch
from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.data.template import TemplateName


class RulerEval(Callback):
    """Scores the model on RULER tasks and logs ``ruler/<task>/<length>/r<budget>``, 0..100."""

    def __init__(
        self,
        tasks: Sequence[str] = ("niah_single_1", "niah_multikey_2"),
        lengths: Sequence[int] | None = None,
        budgets: Sequence[float] = (1.0, 0.5, 0.25),
        num_samples: int = 16,
        every_n_steps: int = 500,
        lag_divisor: int = 32,
        sink_size: int = 16,
        batch_size: int = 8,
        template: TemplateName | None = None,
        seed: int = 42,
    ):
        """
        Args:
            tasks: RULER tasks.
            lengths: prompt lengths in tokens, new tokens included; data.seq_len when None.
            budgets: retention ratios r of the cache; 1 is dense.
            num_samples: samples of each task and length.
            every_n_steps: optimizer steps between two checks; it also runs before the first and after the last.
            lag_divisor: lag = length / lag_divisor.
            sink_size: sink of the compressed cache.
            batch_size: prompts decoded together.
            template: base or chatml; data.template when None.
            seed: of the samples.
        """
        self.tasks = tasks
        self.lengths = lengths
        self.budgets = budgets
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.lag_divisor = lag_divisor
        self.sink_size = sink_size
        self.batch_size = batch_size
        self.template = template
        self.seed = seed
        self._evaluator = None
        self._scored_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the samples.

        Raises:
            InputError: an unknown task, or a length that its text does not fit.
        """
        from lrsa_lightning.ruler.evaluator import RulerEvaluator

        data = trainer.datamodule
        self._evaluator = RulerEvaluator(
            data.tokenizer,
            self.tasks,
            self.lengths or [data.seq_len],
            self.budgets,
            self.num_samples,
            self.lag_divisor,
            self.sink_size,
            self.batch_size,
            self.template or data.template,
            self.seed,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._run(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._scored_step:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._scored_step:
            self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scored_step = trainer.global_step
        metrics = {}
        with trainer.precision_plugin.forward_context():
            for score in self._evaluator.evaluate(pl_module.model, trainer.global_rank, trainer.world_size):
                sums = torch.tensor([score.total, score.count], device=pl_module.device)
                total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
                metrics[score.name] = round(100 * total / count, 2)
        for logger in trainer.loggers:
            # Lightning counts the steps it logs from 0: the scores after step n stand beside the loss of step n.
            logger.log_metrics(metrics, step=max(0, trainer.global_step - 1))
        if trainer.is_global_zero:
            scores = "  ".join(f"{name.removeprefix('ruler/')} {value:g}" for name, value in metrics.items())
            trainer.print(f"RULER at step {trainer.global_step}: {scores}")
