"""Scores a model on RULER with a dense and with a compressed cache: the one evaluator behind callback and command."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.distributed.head_parallel import whole_cache_bytes
from lrsa_lightning.errors import InputError
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, PositiveUnitInterval, checked
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.results import CellName, Record
from lrsa_lightning.ruler.samples import digest
from lrsa_lightning.ruler.scoring import match_all
from lrsa_lightning.ruler.sharing import Share
from lrsa_lightning.ruler.tasks import find_task
from lrsa_lightning.ruler.teacher_forcing import teacher_force

Row = Mapping[str, Any]


@dataclass
class Stopwatch:
    """Seconds spent in each part of an evaluation; on an accelerator, its work included."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, part: str, device: torch.device) -> Iterator[None]:
        """Adds the time of a `with` block to a part."""
        started = time.perf_counter()
        yield
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self.seconds[part] += time.perf_counter() - started


class RulerEvaluator:
    """Scores any model on its samples, chunk by chunk through the cache that training's rule gives."""

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
            batch_size: prompts decoded together.
            prefill_chunk_size: prompt tokens a forward pass; speed and memory only.
            modes: further attention modes by name, whatever the length.
            end_tokens: ids that end an answer, beside the tokenizer's and the model's own.

        Raises:
            InputError: a number out of its range, neither budget nor mode, two of one name, a task and length without
                samples, or a length at which a budget is not what it says.
        """
        self._budgets = CacheBudgets(budgets, lag_divisor, sink_size)
        self._modes = dict(modes or {})
        check_choice([*self._budgets.labels, *self._modes], "budgets, with modes,")
        for task, length in samples:
            self._budgets.check_length(length)
            if not samples[task, length]:
                raise InputError(f"RulerEvaluator.samples: none of {task} at length {length}")
        self.samples = samples
        self.batch_size = batch_size
        self.stopwatch = Stopwatch()
        self._tokenizer = tokenizer
        self._prefill_chunk_size = prefill_chunk_size
        self._end_tokens = {*end_tokens, tokenizer.eos_token_id} - {None}

    @property
    def budgets(self) -> list[str]:
        """Labels of the cache budgets and names of the further modes."""
        return [*self._budgets.labels, *self._modes]

    @property
    def cells(self) -> list[CellName]:
        """Task, length and budget of all there is to score, in order."""
        return [(task, length, budget) for task, length in self.samples for budget in self.budgets]

    def num_batches(self, share: Share, together: Mapping[CellName, Share] = MappingProxyType({})) -> int:
        """Batches of an evaluation, in each process."""
        return sum(-(-self._most_samples(cell, together.get(cell, share)) // self.batch_size) for cell in self.cells)

    def _most_samples(self, cell: CellName, share: Share) -> int:
        """Samples of a cell that each process scores."""
        return -(-len(self.samples[cell[:2]]) // share.world_size)

    def cache_bytes(self, cell: CellName, model, share: Share) -> int:
        """Bytes of the cache of a batch, all prompts of which have the cell's length, over all layers and heads."""
        (_, length, budget), config = cell, model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rule = self.mode(length, budget).context_rule(length, 1)
        layers = range(config.num_hidden_layers)
        held = [length if rule is None else rule.chunking(layer).stored_len(length) for layer in layers]
        rows = min(self.batch_size, self._most_samples(cell, share))
        return rows * sum(held) * 2 * config.num_key_value_heads * head_dim * model.dtype.itemsize

    def mode(self, length: int, budget: str) -> AttentionMode:
        """The attention a budget is measured with, whatever the model was trained with."""
        return self._modes[budget] if budget in self._modes else self._budgets.mode(length, budget)

    @torch.no_grad()
    def evaluate(
        self,
        model,
        generation: bool = True,
        teacher_forcing: bool = True,
        share: Share | None = None,
        done: Collection[tuple[str, str]] = (),
        stop: Callable[[], bool] = lambda: False,
        together: Mapping[CellName, Share] = MappingProxyType({}),
    ) -> Iterator[list[Record]]:
        """Yields the records of each batch; leaves attention, train modes, random state and memory as they were.

        Args:
            model: a transformers causal decoder.
            generation: whether to generate and score answers.
            teacher_forcing: whether to rate the references.
            share: what this process scores of it.
            done: ids and budgets of samples to leave out; the same in all processes.
            stop: asked before each task, length and budget, in all processes; ends the evaluation.
            together: its share of the cells that groups of ranks score together.
        """
        alone = share or Share()
        for cell in self.cells:
            (task, length, budget), share = cell, together.get(cell, alone)
            samples = [row for row in self.samples[task, length] if (row["id"], budget) not in done]
            if not samples:
                continue
            if stop():
                return
            mine, num_own = share.deal(samples)
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                with _untouched(model):
                    records = self._score(model, budget, batch, generation, teacher_forcing, share)
                yield share.gather(records[: max(0, num_own - start)])

    def _score(
        self, model, budget: str, batch: list[Row], generation: bool, teacher_forcing: bool, share: Share
    ) -> list[Record]:
        task, length = batch[0]["task"], batch[0]["max_length"]
        mode, found = share.spread(self.mode(length, budget), model.config), [{} for _ in batch]
        prompts = [self._ids(row["input"] + row["answer_prefix"]) for row in batch]
        if teacher_forcing:
            with self.stopwatch.time("teacher forcing", model.device):
                pieces = None if share.group is None else self._pieces(length)
                rated = self._rate(model, mode, prompts, batch, pieces)
                found = [f | r for f, r in zip(found, rated, strict=True)]
        if generation:
            pieces = None if share.world_size == 1 else self._pieces(length)
            answers = self._answer(model, mode, prompts, task, pieces)
            found = [
                f | a | _score_prediction(task, a["prediction"], row["outputs"])
                for f, a, row in zip(found, answers, batch, strict=True)
            ]
        return [
            Record(
                row["id"],
                task,
                length,
                budget,
                row["length"] / length,
                row["outputs"],
                row["depths"],
                digest=digest(row),
                **values,
            )
            for row, values in zip(batch, found, strict=True)
        ]

    def _rate(
        self, model, mode: AttentionMode, prompts: list[list[int]], batch: list[Row], num_pieces: int | None
    ) -> list[dict]:
        answers = [self._ids(row["answer"]) for row in batch]
        rated = teacher_force(model, mode, prompts, answers, batch[0]["max_length"], num_pieces)
        return [{"nll": answer.nll, "exact_match": answer.exact_match} for answer in rated]

    def _answer(
        self, model, mode: AttentionMode, prompts: list[list[int]], task: str, num_pieces: int | None
    ) -> list[dict]:
        """Predictions and bytes of the caches; with ``num_pieces`` the number of forward passes is fixed."""
        rows, lengths = [torch.tensor(prompt) for prompt in prompts], [len(prompt) for prompt in prompts]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        pieces = num_pieces or self._pieces(max(lengths))
        with mode.installed(model):
            with self.stopwatch.time("prefill", model.device):
                prompt = Prompt(model, input_ids, lengths, mode, pieces)
            num_bytes = whole_cache_bytes(prompt.cache) // len(rows)
            with self.stopwatch.time("decoding", model.device):
                limit, ends = find_task(task).tokens_to_generate, sorted(self._end_tokens | _model_ends(model))
                new = prompt.decode(limit, ends, early_end=num_pieces is None)
        texts = self._tokenizer.batch_decode(_until_end(new.tolist(), ends), skip_special_tokens=True)
        return [{"prediction": text, "kv_bytes": num_bytes} for text in texts]

    def _pieces(self, length: int) -> int:
        return -(-length // self._prefill_chunk_size)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _score_prediction(task: str, prediction: str, outputs: list[str]) -> dict[str, Any]:
    hits = [match_all(prediction, [output]) == 1 for output in outputs]
    return {"score": find_task(task).metric(prediction, outputs), "hits": hits}


def answer_ends(template: TemplateName, tokenizer) -> list[int]:
    """Ids that end an answer under a template, where one token does."""
    ids = tokenizer(make_template(template, tokenizer).answer_end, add_special_tokens=False)["input_ids"]
    return ids if len(ids) == 1 else []


def _model_ends(model) -> set[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return set() if ends is None else set(torch.tensor(ends).flatten().tolist())


def _until_end(rows: list[list[int]], ends: Collection[int]) -> list[list[int]]:
    """New tokens in front of each row's end token."""
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


@contextmanager
def _untouched(model) -> Iterator[None]:
    """Brings train modes and random state back, and gives the accelerator's memory free again."""
    from lightning.pytorch.utilities.seed import isolate_rng

    modes = [(module, module.training) for module in model.modules()]
    # Of the devices, isolate_rng knows CUDA's alone.
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
