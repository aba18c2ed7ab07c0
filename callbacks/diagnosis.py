"""What the rule keeps of held-out texts, while training runs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.callbacks.pictures import log_picture
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.diagnosis import Findings, MarkedText, TextSource, diagnose
from lrsa_lightning.diagnosis.chosen import choose
from lrsa_lightning.diagnosis.diagnose import check_mode
from lrsa_lightning.diagnosis.files import write_files
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.step_log import write_steps


class Diagnosis(Callback):
    """Measures which tokens the rule keeps, and the fraction of full attention's mass that they hold.

    It logs means as ``diagnosis/...`` and heat maps by layer and head, which also go to ``diagnosis/`` in the run
    directory: before the first step, every ``every_n_steps`` and after the last.
    """

    @checked
    def __init__(
        self,
        data: Sequence[str] | None = None,
        every_n_steps: PositiveInt = 500,
        num_texts: PositiveInt = 2,
        attention: AttentionMode | None = None,
        max_queries: PositiveInt = 512,
        template: TemplateName | None = None,
    ):
        """
        Args:
            data: files as `lrsa diagnose --data` takes them; data.val_files when None.
            every_n_steps: optimizer steps between two measurements.
            num_texts: of each file, or of data.val_files together.
            attention: the rule to apply; the run's own when None. A run with full attention needs one.
            max_queries: queries of a text whose mass is measured, evenly spaced.
            template: base or chatml; that of the run when None.

        Raises:
            InputError: a number is out of its range, or the attention has no rule.
        """
        if attention is not None:
            check_mode(attention)
        self._data, self._every_n_steps, self._num_texts = data, every_n_steps, num_texts
        self._mode, self._max_queries, self._template = attention, max_queries, template
        self._texts: list[MarkedText] = []
        self._effort = BestEffort("the diagnosis' files")
        self._measured_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the texts.

        Raises:
            InputError: there are no texts, or none is long enough; or the run's attention has no rule.
        """
        data = trainer.datamodule
        self._mode = self._mode or pl_module.attention
        check_mode(self._mode)
        self._mode.check(pl_module.starting_model.load_config())
        source = TextSource(data.tokenizer, self._template or data.run_template, data.seq_len, data.extend)
        if self._data is not None:
            texts = {file: source.texts(file) for file in self._data}
        elif data.val_files:
            texts = {"data.val_files": source.of_samples(data.corpus.samples("val"))}
        else:
            raise InputError("Diagnosis has no texts: give it data, or set data.val_files")
        self._texts = [
            text for name, own in texts.items() for text in choose(own, name, source, self._mode, self._num_texts)
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measured_step = trainer.global_step
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step % self._every_n_steps == 0 and trainer.global_step != self._measured_step:
            write_steps(trainer, last=trainer.global_step - 1)  # callbacks after this one add to the current row
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._measured_step:
            self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._measure(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks run the same texts: strategies that shard weights need each of them."""
        self._measured_step = trainer.global_step
        options = {"max_queries": self._max_queries}
        with trainer.precision_plugin.forward_context():
            findings = pl_module.as_forward(lambda: diagnose(pl_module.model, self._mode, self._texts, **options))
        metrics = findings.metrics()
        # Callbacks such as ModelCheckpoint monitor them.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if trainer.is_global_zero:
            self._report(trainer, pl_module.trained_steps, findings)

    def _report(self, trainer: Trainer, steps: int, findings: Findings) -> None:
        folder = Path(trainer.default_root_dir) / "diagnosis"
        pictures: list[Path] = []
        with self._effort.attempt():
            _, *pictures = write_files(findings, folder, self._mode, f"step {steps}", prefix=f"step-{steps:06d}-")
        for logger in trainer.loggers:
            logger.log_metrics(findings.metrics(), step=steps)
            for picture in pictures:
                with self._effort.attempt():
                    log_picture(logger, f"diagnosis_{picture.stem.rpartition('-')[2]}", picture, steps)
