"""Scores a model on RULER with a dense and with a compressed cache: the one evaluator of callback and command."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Literal

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.errors import InputError
from lrsa_lightning.library_errors import is_out_of_memory
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, PositiveUnitInterval, checked
from lrsa_lightning.ruler.batch_sizes import BatchSizes, activation_bytes, cache_bytes
from lrsa_lightning.ruler.batches import Batch, CacheName, Group, breadth_first, cell_by_cell
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import CellName, Record
from lrsa_lightning.ruler.samples import Row
from lrsa_lightning.ruler.scorer import BatchScorer, Stopwatch
from lrsa_lightning.ruler.time_limit import TimeLimit

log = logging.getLogger(__name__)


class RulerEvaluator:
    """Scores any model on its samples, chunk by chunk through the cache of each budget."""

    @checked
    def __init__(
        self,
        tokenizer,
        samples: Mapping[tuple[str, int], Sequence[Row]],
        budgets: Sequence[PositiveUnitInterval] = (1.0, 0.5, 0.25),
        lag_divisor: PositiveInt = 32,
        sink_size: NonNegativeInt = 16,
        batch_size: PositiveInt | Literal["auto"] = 8,
        prefill_chunk_size: PositiveInt = 4096,
        modes: Mapping[str, AttentionMode] | None = None,
        end_tokens: Sequence[int] = (),
    ):
        """
        Args:
            tokenizer: the model's.
            samples: rows of `make_samples` by task and length.
            budgets: retention ratios r of the cache; 1 is dense.
            lag_divisor: lag = length / lag_divisor, as in the paper's Table 1.
            sink_size: S of the compressed cache.
            batch_size: prompts decoded together, at most; auto: as many as fit in the free memory, up to 32, or 8 on a
                CPU.
            prefill_chunk_size: prompt tokens in a forward pass; speed and memory only.
            modes: further attention modes by name, for all lengths.
            end_tokens: ids that end an answer, besides the tokenizer's and the model's own.

        Raises:
            InputError: a number is out of its range, there is neither budget nor mode, two have one name, a task and
                length has no samples, or a budget has no meaning at a length.
        """
        self._budgets = CacheBudgets(budgets, lag_divisor, sink_size)
        self._modes = dict(modes or {})
        check_choice([*self._budgets.labels, *self._modes], "budgets, with modes,")
        for task, length in samples:
            self._budgets.check_lengths([length])
            if not samples[task, length]:
                raise InputError(f"RulerEvaluator.samples: none of {task} at length {length}")
        self.samples = samples
        self.stopwatch = Stopwatch()
        self._batch_sizes = BatchSizes(batch_size)
        self._tokenizer = tokenizer
        self._prefill_chunk_size = prefill_chunk_size
        self._end_tokens = frozenset({*end_tokens, tokenizer.eos_token_id} - {None})

    @property
    def budgets(self) -> list[str]:
        """Labels of the cache budgets and names of the further modes."""
        return [*self._budgets.labels, *self._modes]

    @property
    def cells(self) -> list[CellName]:
        """Task, length and budget of all scores, in order."""
        return [(task, length, budget) for task, length in self.samples for budget in self.budgets]

    def mode(self, length: int, budget: str) -> AttentionMode:
        """The attention of a budget, whatever the model was trained with."""
        return self._modes[budget] if budget in self._modes else self._budgets.mode(length, budget)

    def prompt_bytes(self, cache: CacheName, config, dtype: torch.dtype) -> int:
        """Bytes of the cache of one prompt that has the full length, over all layers and heads."""
        length, budget = cache
        return cache_bytes(self.mode(length, budget), length, config, dtype.itemsize)

    def batch_sizes(
        self, model, ranks: Ranks, generation: bool = True, teacher_forcing: bool = True, tasks_share: bool = False
    ) -> dict[CacheName, int]:
        """Prompts of a rank in a batch, by length and budget: up to ``batch_size``, as many as fit in the free memory.

        All ranks must call it, with the model on its device.

        Args:
            model: a transformers causal decoder.
            ranks: of the evaluation.
            generation: whether it generates answers.
            teacher_forcing: whether it rates the references.
            tasks_share: whether a batch holds samples of several tasks.
        """
        together = sum if tasks_share else max
        prompts, needed = {}, {}
        for length in dict.fromkeys(length for _, length in self.samples):
            num_samples = together(len(rows) for (_, own), rows in self.samples.items() if own == length)
            piece = min(self._prefill_chunk_size, length) if generation else length
            activations = activation_bytes(piece, model.config, model.dtype.itemsize)
            for cache in ((length, budget) for budget in self.budgets):
                held = self.prompt_bytes(cache, model.config, model.dtype) if generation else 0
                prompts[cache] = ranks.most(num_samples)
                # The references are rated on a copy of the cache.
                needed[cache] = max(held + activations, held * (1 + teacher_forcing))
        return self._batch_sizes.fit(prompts, needed, model.device)

    def groups(
        self,
        ranks: Ranks,
        batch_sizes: Mapping[CacheName, int],
        done: Collection[tuple[str, str]] = (),
        tasks_share: bool = False,
    ) -> list[Group]:
        """The batches of an evaluation, in order.

        Args:
            ranks: of the evaluation.
            batch_sizes: of the method of that name.
            done: ids and budgets of samples to leave out.
            tasks_share: `breadth_first` instead of `cell_by_cell`; nothing is left out then.
        """
        sizes = {cache: size * ranks.world_size for cache, size in batch_sizes.items()}
        if tasks_share:
            return [*breadth_first(self.samples, self.budgets, sizes)]
        return [*cell_by_cell(self.samples, self.budgets, sizes, done)]

    def in_order(self, records: Iterable[Record]) -> list[Record]:
        """The records by cell and then by sample, in the order of `cells` and `samples`; others come last, as given."""
        ids = (row["id"] for rows in self.samples.values() for row in rows)
        places = {place: number for number, place in enumerate((id, budget) for id in ids for budget in self.budgets)}
        cells = {cell: number for number, cell in enumerate(self.cells)}
        last = len(places)
        return sorted(records, key=lambda r: (cells.get(r.cell, last), places.get((r.id, r.budget), last)))

    @torch.no_grad()
    def evaluate(
        self,
        model,
        generation: bool = True,
        teacher_forcing: bool = True,
        ranks: Ranks | None = None,
        groups: Iterable[Group] | None = None,
        limit: TimeLimit | None = None,
    ) -> Iterator[list[Record]]:
        """Yields the records of each batch; leaves attention, train modes, random state and memory unchanged.

        Args:
            model: a transformers causal decoder.
            generation: whether to generate and score answers.
            teacher_forcing: whether to rate the references.
            ranks: which samples this rank scores; all when None.
            groups: of the method of that name; all samples cell by cell when None.
            limit: leaves out groups that it has no time for, and measures each batch.
        """
        ranks, limit = ranks or Ranks(), limit or TimeLimit()
        scorer = BatchScorer(
            self._tokenizer,
            self._prefill_chunk_size,
            self._end_tokens,
            generation,
            teacher_forcing,
            fixed_passes=ranks.world_size > 1,
            stopwatch=self.stopwatch,
        )
        if groups is None:
            groups = self.groups(ranks, self.batch_sizes(model, ranks, generation, teacher_forcing))
        with _memory_freed(model.device):
            for batch in limit.admitted(groups):
                started = monotonic()
                own, num_own = ranks.split(batch.rows)
                with _untouched(model):
                    records = _score(scorer, model, self.mode(batch.length, batch.budget), batch, own)
                records = ranks.gather(records[:num_own])
                limit.took(batch, monotonic() - started)
                yield records


def _score(scorer: BatchScorer, model, mode: AttentionMode, batch: Batch, rows: Sequence[Row]) -> list[Record]:
    """The records of rows; where another process has taken the memory that they need, of one half after the other.

    Ranks that share a model's forward passes cannot do so alone.
    """
    try:
        return scorer.score(model, mode, batch, rows)
    except RuntimeError as error:
        if scorer.fixed_passes or len(rows) == 1 or not is_out_of_memory(error):
            raise
    log.warning("RULER %s: the memory is full with %d prompts at a time, half as many follow", batch.name, len(rows))
    _free_memory(model.device)
    half = -(-len(rows) // 2)
    return [record for part in (rows[:half], rows[half:]) for record in _score(scorer, model, mode, batch, part)]


@contextmanager
def _untouched(model) -> Iterator[None]:
    """Restores train modes and random state."""
    from lightning.pytorch.utilities.seed import isolate_rng

    modes = [(module, module.training) for module in model.modules()]
    # isolate_rng handles CUDA's devices only.
    devices = [] if model.device.type == "cpu" else [model.device]
    with isolate_rng(), torch.random.fork_rng(devices, device_type=model.device.type):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _memory_freed(device: torch.device) -> Iterator[None]:
    """Frees the accelerator's memory once, after all batches: to get it again takes time."""
    try:
        yield
    finally:
        _free_memory(device)


def _free_memory(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.empty_cache()
