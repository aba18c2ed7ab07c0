"""The evaluation of `lrsa eval`: a model, its samples, and a folder of results."""

import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.data.template import answer_ends
from lrsa_lightning.errors import InputError
from lrsa_lightning.npu.accelerator import make_fabric
from lrsa_lightning.pretrained.decoder import check_length
from lrsa_lightning.ruler.batches import Group
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.evaluated_model import EvaluatedModel, fingerprint
from lrsa_lightning.ruler.evaluation import EvaluationFolder, lock_of
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.official import OfficialSamples
from lrsa_lightning.ruler.options import PAPER_LENGTHS, chosen_tasks, sample_settings
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import Record
from lrsa_lightning.ruler.results import cell_scores, metrics
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.ruler.summary import score_table
from lrsa_lightning.ruler.time_limit import TimeLimit

log = logging.getLogger(__name__)
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Evaluation:
    """One call of the command; its help describes the options."""

    def __init__(self, options: Namespace):
        """The options are parsed, with the attention mode instantiated.

        Raises:
            InputError: an option, the model, the samples or the folder is wrong.
        """
        self._options = options
        self._official = self._official_samples()
        tasks = chosen_tasks(options) if self._official is None else []
        self._check_measures()
        self._fabric = make_fabric(options.devices)
        self._fabric.launch()
        if self.is_first:
            lock_of(Path(options.output)).acquire()  # before the model is loaded; released after the evaluation
        self._evaluated = EvaluatedModel(options.model, options.checkpoint, options.tokenizer, self._dtype)
        check_length(self._evaluated.config, max(self._lengths), "--lengths")
        self._budgets.check_lengths(self._lengths)
        self._evaluated.model  # noqa: B018  reads the weights before samples are made
        samples, settings, sources = self._samples(tasks)
        self._evaluator = RulerEvaluator(
            self._evaluated.tokenizer,
            samples,
            options.budgets,
            options.lag_divisor,
            options.sink_size,
            options.batch_size,
            options.prefill_chunk_size,
            self._modes,
            answer_ends(self._template, self._evaluated.tokenizer),
        )
        self._folder = EvaluationFolder(Path(options.output), self._settings(settings), sources)
        self._folder.check(self._evaluator)
        self._model = self._evaluated.model.to(self._fabric.device)
        self._limit = TimeLimit()  # measures the batches

    def _official_samples(self) -> OfficialSamples | None:
        """The samples of RULER's own scripts; None where --samples is a folder of `lrsa ruler`, or is not given."""
        options = self._options
        if options.samples is None or SampleStore.is_in(Path(options.samples)):
            return None
        return OfficialSamples(Path(options.samples), options.tasks, options.lengths, options.skip_missing)

    def _check_measures(self) -> None:
        """Checks that there is something to measure, under budgets with a meaning at the lengths known so far."""
        options = self._options
        if not (options.generation or options.teacher_forcing):
            raise InputError("--generation false and --teacher_forcing false leave nothing to measure: take one")
        self._budgets = CacheBudgets(options.budgets, options.lag_divisor, options.sink_size)
        check_choice([*self._budgets.labels, *self._modes], "--budgets")
        if self._official is not None or options.lengths is not None or options.checkpoint is None:
            self._budgets.check_lengths(self._lengths)

    @property
    def _dtype(self) -> torch.dtype:
        default = "float32" if self._fabric.device.type == "cpu" else "bfloat16"
        return _PRECISIONS[self._options.precision or default]

    @property
    def _modes(self) -> dict[str, AttentionMode]:
        """The further mode, by its name."""
        attention = self._options.attention
        return {} if attention is None else {type(attention).__name__.lower(): attention}

    def _samples(self, tasks: list[str]) -> tuple[dict, dict[str, Any], dict[str, str]]:
        """The samples by task and length, their settings, and the hashes of the files that they depend on, by name."""
        options, tokenizer = self._options, self._evaluated.tokenizer
        if self._official is not None:
            samples = self._official.read(tokenizer, options.num_samples)
            return samples, self._official.settings(self._template), self._official.hashes()
        settings = sample_settings(options, self._template)
        if options.samples is None:
            store = SampleStore.in_cache(Path(".lrsa_cache"), tokenizer, settings)
        else:
            store = SampleStore(Path(options.samples), tokenizer, settings)
        # The other processes leave out the same.
        log_skipped = (log.warning if self.is_first else log.debug) if options.skip_missing else None
        cells = ((task, length) for length, task in product(self._lengths, tasks))
        workers = (os.cpu_count() or 1) // self._fabric.world_size
        samples = store.samples_that_fit(cells, options.num_samples, log_skipped, self.is_first, workers)
        return samples, store.manifest("niah_single_1"), store.hashes(tasks)

    @property
    def is_first(self) -> bool:
        """Whether this process prints."""
        return self._fabric.is_global_zero

    @cached_property
    def _groups(self) -> list[Group]:
        ranks, options = Ranks.of_process_group(), self._options
        sizes = self._evaluator.batch_sizes(self._model, ranks, options.generation, options.teacher_forcing)
        return self._folder.groups(self._evaluator, ranks, sizes)

    @property
    def num_batches(self) -> int:
        """Batches of this call."""
        return sum(map(len, self._groups))

    def run(self) -> Iterator[list[Record]]:
        """Scores the samples that have no result in the folder, batch by batch."""
        yield from self._folder.run(
            self._evaluator,
            self._model,
            Ranks.of_process_group(),
            self._groups,
            generation=self._options.generation,
            teacher_forcing=self._options.teacher_forcing,
            limit=self._limit,
        )

    @property
    def seconds_left(self) -> float:
        """An estimate, by the batches so far."""
        return self._limit.rest(batch for group in self._groups for batch in group)

    def summary(self) -> str:
        """The scores of everything in the folder, and the time of this call by part."""
        figures = metrics(cell_scores(self._folder.records()))
        seconds = "  ".join(f"{part} {time:.1f} s" for part, time in self._evaluator.stopwatch.seconds.items())
        return f"{score_table(figures)}\n{seconds}\nresults: {self._folder.path}"

    @property
    def _lengths(self) -> list[int]:
        if self._official is not None:
            return self._official.lengths
        if self._options.lengths is not None:
            return self._options.lengths
        return PAPER_LENGTHS if self._options.checkpoint is None else [self._evaluated.seq_len]

    @property
    def _template(self) -> str:
        return self._options.template or self._evaluated.template

    def _settings(self, samples: dict[str, Any]) -> dict[str, Any]:
        """All that a sample's result depends on, besides its id and budget."""
        options = self._options
        return {
            "model": self._evaluated.name,
            "weights": self._fabric.broadcast(fingerprint(self._evaluated.model) if self.is_first else None),
            "dtype": str(self._evaluated.dtype),
            "samples": samples,
            "lag_divisor": options.lag_divisor,
            "sink_size": options.sink_size,
            "attention": repr(options.attention),
            "generation": options.generation,
            "teacher_forcing": options.teacher_forcing,
        }
