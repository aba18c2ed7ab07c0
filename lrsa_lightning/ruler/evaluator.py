"""Scores a model on RULER with a dense and with a compressed cache: the one evaluator of callback and command."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, PositiveUnitInterval, checked
from lrsa_lightning.ruler.batch_sizes import BatchSizes, cache_bytes
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import CellName, Record
from lrsa_lightning.ruler.samples import Row
from lrsa_lightning.ruler.scorer import BatchScorer, Stopwatch


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
        batch_size: PositiveInt = 8,
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
            batch_size: prompts decoded together, at most.
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
        self._batch_size, self._batch_sizes = batch_size, BatchSizes()
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

    def prompt_bytes(self, cell: CellName, config, dtype: torch.dtype) -> int:
        """Bytes of the cache of one prompt that has the cell's length, over all layers and heads."""
        _, length, budget = cell
        return cache_bytes(self.mode(length, budget), length, config, dtype.itemsize)

    def batch_sizes(self, model, ranks: Ranks) -> dict[CellName, int]:
        """Prompts in a batch of each cell: up to ``batch_size``, whose caches fit in the memory that is free now.

        All ranks must call it, with the model on its device.
        """
        requested = {cell: min(self._batch_size, ranks.most(len(self.samples[cell[:2]]))) for cell in self.cells}
        prompt_bytes = {cell: self.prompt_bytes(cell, model.config, model.dtype) for cell in self.cells}
        return self._batch_sizes.fit(requested, prompt_bytes, model.device)

    def num_batches(self, ranks: Ranks, batch_sizes: Mapping[CellName, int]) -> int:
        """Batches that each rank scores in a full evaluation."""
        return sum(-(-ranks.most(len(self.samples[cell[:2]])) // size) for cell, size in batch_sizes.items())

    @torch.no_grad()
    def evaluate(
        self,
        model,
        generation: bool = True,
        teacher_forcing: bool = True,
        ranks: Ranks | None = None,
        done: Collection[tuple[str, str]] = (),
        stop: Callable[[], bool] = lambda: False,
        batch_sizes: Mapping[CellName, int] = MappingProxyType({}),
    ) -> Iterator[list[Record]]:
        """Yields the records of each batch; leaves attention, train modes, random state and memory unchanged.

        Args:
            model: a transformers causal decoder.
            generation: whether to generate and score answers.
            teacher_forcing: whether to rate the references.
            ranks: which samples this rank scores; all when None.
            done: ids and budgets of samples to leave out; the same on all ranks.
            stop: called before each cell, on all ranks; true ends the evaluation.
            batch_sizes: of `batch_sizes`, by cell; ``batch_size`` for others.
        """
        ranks = ranks or Ranks()
        scorer = BatchScorer(
            self._tokenizer,
            self._prefill_chunk_size,
            self._end_tokens,
            generation,
            teacher_forcing,
            fixed_passes=ranks.world_size > 1,
            stopwatch=self.stopwatch,
        )
        for cell in self.cells:
            task, length, budget = cell
            samples = [row for row in self.samples[task, length] if (row["id"], budget) not in done]
            if not samples:
                continue
            if stop():
                return
            own, num_own = ranks.split(samples)
            size = batch_sizes.get(cell, self._batch_size)
            for start in range(0, len(own), size):
                with _untouched(model):
                    records = scorer.score(model, self.mode(length, budget), budget, own[start : start + size])
                yield ranks.gather(records[: max(0, num_own - start)])


@contextmanager
def _untouched(model) -> Iterator[None]:
    """Restores train modes and random state, and frees the accelerator's memory."""
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
            if model.device.type != "cpu":
                torch.accelerator.empty_cache()
