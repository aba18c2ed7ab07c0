"""The evaluation behind scripts/eval_ruler.py: a model, its samples, and a folder of results."""

import logging
from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError
from lrsa_lightning.npu.fabric import make_fabric
from lrsa_lightning.pretrained import check_length, load_config, load_model
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.evaluation import EvaluationFolder, lock_of
from lrsa_lightning.ruler.evaluator import RulerEvaluator, Share, answer_ends
from lrsa_lightning.ruler.fingerprint import fingerprint
from lrsa_lightning.ruler.options import PAPER_LENGTHS, chosen_tasks, sample_settings
from lrsa_lightning.ruler.results import Record, cell_scores, metrics
from lrsa_lightning.ruler.samples import NotAtThisLength
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.ruler.summary import score_table
from lrsa_lightning.trained_model import load_checkpoint

log = logging.getLogger(__name__)
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Evaluation:
    """One call of the command; see its help for the options."""

    def __init__(self, options: Namespace):
        """
        Args:
            options: parsed, with the attention mode instantiated.

        Raises:
            InputError: model, samples or folder are not what they should be.
        """
        self._options = options
        tasks = chosen_tasks(options)
        self._check_measures()
        self._fabric = make_fabric(options.devices)
        self._fabric.launch()
        if self.is_first:
            lock_of(Path(options.output)).acquire()  # before the model is loaded; let go of when all is scored
        check_length(self._config, max(self._lengths), "--lengths")
        for length in self._lengths:
            self._budgets.check_length(length)
        self._model  # noqa: B018  its weights are read before time goes into samples
        store = self._store()
        with self._fabric.rank_zero_first():
            samples = self._samples(store, tasks)
        self._evaluator = self._make_evaluator(samples)
        self._folder = EvaluationFolder(Path(options.output), self._settings(store), _source_hashes(store, tasks))
        self._folder.check(self._evaluator)

    def _check_measures(self) -> None:
        """Whether something is to be measured, under budgets that make sense at the lengths known so far."""
        options = self._options
        if not (options.generation or options.teacher_forcing):
            raise InputError("--generation false and --teacher_forcing false leave nothing to measure: take one")
        self._budgets = CacheBudgets(options.budgets, options.lag_divisor, options.sink_size)
        check_choice([*self._budgets.labels, *self._modes], "--budgets")
        # A run says its own length, which is read with the checkpoint.
        known = options.lengths or () if options.checkpoint is not None else self._lengths
        for length in known:
            self._budgets.check_length(length)

    @property
    def _modes(self) -> dict[str, AttentionMode]:
        """The further mode, by its name."""
        attention = self._options.attention
        return {} if attention is None else {type(attention).__name__.lower(): attention}

    def _samples(self, store: SampleStore, tasks: list[str]) -> dict[tuple[str, int], list[dict]]:
        """The samples by task and length; with --skip_missing those that can be made at their length."""
        samples = {}
        for length, task in product(self._lengths, tasks):
            try:
                samples[task, length] = store.samples(task, length, self._options.num_samples)
            except NotAtThisLength as error:
                if not self._options.skip_missing:
                    raise
                if self.is_first:
                    log.warning("%s; left out", error)
        return samples

    def _store(self) -> SampleStore:
        settings = sample_settings(self._options, self._template)
        if self._options.samples is None:
            return SampleStore.in_cache(Path(".lrsa_cache"), self._tokenizer, settings)
        return SampleStore(Path(self._options.samples), self._tokenizer, settings)

    def _make_evaluator(self, samples: dict) -> RulerEvaluator:
        options = self._options
        return RulerEvaluator(
            self._tokenizer,
            samples,
            options.budgets,
            options.lag_divisor,
            options.sink_size,
            options.batch_size,
            options.prefill_chunk_size,
            self._modes,
            answer_ends(self._template, self._tokenizer),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks."""
        return self._fabric.is_global_zero

    @property
    def num_batches(self) -> int:
        """Batches of the whole evaluation, those done earlier included."""
        return self._evaluator.num_batches(Share.of_process_group())

    def run(self) -> Iterator[list[Record]]:
        """Scores what is lacking in the folder, batch by batch."""
        model = self._model.to(self._fabric.device)
        options = self._options
        share = Share.of_process_group()
        yield from self._folder.run(self._evaluator, model, share, options.generation, options.teacher_forcing)

    def summary(self) -> str:
        """The scores of everything in the folder, and where the time of this call went."""
        figures = metrics(cell_scores(self._folder.records()))
        seconds = "  ".join(f"{part} {time:.1f} s" for part, time in self._evaluator.stopwatch.seconds.items())
        return f"{score_table(figures)}\n{seconds}\nresults: {self._folder.path}"

    @cached_property
    def _run(self):
        """The run a checkpoint belongs to."""
        return load_checkpoint(Path(self._options.checkpoint), self._dtype)

    @cached_property
    def _config(self):
        """The model's."""
        return load_config(self._options.model, None) if self._options.checkpoint is None else self._run.model.config

    @cached_property
    def _model(self):
        if self._options.checkpoint is not None:
            return self._run.model
        return load_model(self._config, self._options.model, self._dtype).eval()

    @property
    def _dtype(self) -> torch.dtype:
        default = "float32" if self._fabric.device.type == "cpu" else "bfloat16"
        return _PRECISIONS[self._options.precision or default]

    @cached_property
    def _tokenizer(self):
        own = self._options.model if self._options.checkpoint is None else self._run.tokenizer_name
        return load_tokenizer(self._options.tokenizer or own, "--tokenizer")

    @property
    def _lengths(self) -> list[int]:
        if self._options.lengths is not None:
            return self._options.lengths
        return PAPER_LENGTHS if self._options.checkpoint is None else [self._run.config["data"]["seq_len"]]

    @property
    def _template(self) -> str:
        of_run = "base" if self._options.checkpoint is None else self._run.config["data"]["template"]
        return self._options.template or of_run

    def _settings(self, store: SampleStore) -> dict[str, Any]:
        """All that a sample's result depends on, beside its own name and budget."""
        options = self._options
        return {
            "model": str(Path(options.checkpoint or options.model)),
            "weights": self._fabric.broadcast(fingerprint(self._model) if self.is_first else None),
            "dtype": str(self._dtype),
            "samples": store.manifest("niah_single_1"),
            "lag_divisor": options.lag_divisor,
            "sink_size": options.sink_size,
            "attention": repr(options.attention),
            "generation": options.generation,
            "teacher_forcing": options.teacher_forcing,
        }


def _source_hashes(store: SampleStore, tasks: list[str]) -> dict[str, str]:
    """Hashes of the files that the tasks' samples are made from, by name."""
    return {name: digest for task in tasks for name, digest in store.manifest(task)["files"].items()}
