"""Scores a model on RULER with a dense and with a compressed cache: the one evaluator behind callback and command."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch

from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler.results import Record
from lrsa_lightning.ruler.scoring import match_all
from lrsa_lightning.ruler.tasks import find_task
from lrsa_lightning.ruler.teacher_forcing import teacher_force

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """Which of the samples this process scores, of several that each make the same forward passes.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        gather: this process's records -> those of all of them, in each process.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[list[Record]], list[Record]] = list

    @classmethod
    def of_process_group(cls) -> "Share":
        """One share for each process of torch.distributed's group; everything where there is none."""
        if not torch.distributed.is_initialized():
            return cls()

        def gather(records: list[Record]) -> list[Record]:
            of_ranks: list[list[Record]] = [[]] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_ranks, records)
            return [record for column in zip_longest(*of_ranks) for record in column if record is not None]

        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), gather)

    def deal(self, samples: Sequence[Row]) -> tuple[list[Row], int]:
        """This process's samples, as many as any other's has, and how many of them are its own.

        A process with fewer gets some a second time, which nobody counts.
        """
        mine = list(samples[self.rank :: self.world_size])
        most = -(-len(samples) // self.world_size)
        return mine + list(samples[: most - len(mine)]), len(mine)


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

    def __init__(
        self,
        tokenizer,
        samples: Mapping[tuple[str, int], Sequence[Row]],
        budgets: Sequence[float] = (1.0, 0.5, 0.25),
        lag_divisor: int = 32,
        sink_size: int = 16,
        batch_size: int = 8,
        prefill_chunk_size: int = 4096,
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
        """
        self.samples = samples
        self.batch_size = batch_size
        self.stopwatch = Stopwatch()
        self._tokenizer = tokenizer
        self._budgets = {f"r{budget:g}": budget for budget in budgets}
        self._lag_divisor = lag_divisor
        self._sink_size = sink_size
        self._prefill_chunk_size = prefill_chunk_size
        self._modes = dict(modes or {})
        self._end_tokens = {*end_tokens, tokenizer.eos_token_id} - {None}

    @property
    def cells(self) -> list[tuple[str, int, str]]:
        """Task, length and budget of all there is to score, in order."""
        return [(task, length, budget) for task, length in self.samples for budget in (*self._budgets, *self._modes)]

    def num_batches(self, share: Share) -> int:
        """Batches of an evaluation, in each process."""
        sizes = [-(-len(self.samples[task, length]) // share.world_size) for task, length, _ in self.cells]
        return sum(-(-size // self.batch_size) for size in sizes)

    def mode(self, length: int, budget: str) -> AttentionMode:
        """The attention a budget is measured with, whatever the model was trained with."""
        if budget in self._modes:
            return self._modes[budget]
        ratio = self._budgets[budget]
        if ratio == 1:
            return Vanilla()
        lag_size = max(1, length // self._lag_divisor)
        return LRSA(lag_size=lag_size, retention_ratio=ratio, sink_size=self._sink_size)

    @torch.no_grad()
    def evaluate(
        self,
        model,
        generation: bool = True,
        teacher_forcing: bool = True,
        share: Share | None = None,
        done: Collection[tuple[str, str]] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[Record]]:
        """Yields the records of each batch; leaves attention, train modes, random state and memory as they were.

        Args:
            model: a transformers causal decoder.
            generation: whether to generate and score answers.
            teacher_forcing: whether to rate the references.
            share: what this process scores of it.
            done: ids and budgets of samples to leave out; the same in all processes.
            stop: asked before each task, length and budget, in all processes; ends the evaluation.
        """
        share = share or Share()
        for task, length, budget in self.cells:
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
        mode, found = self.mode(length, budget), [{} for _ in batch]
        prompts = [self._ids(row["input"] + row["answer_prefix"]) for row in batch]
        if teacher_forcing:
            with self.stopwatch.time("teacher forcing", model.device):
                found = [f | r for f, r in zip(found, self._rate(model, mode, prompts, batch, length), strict=True)]
        if generation:
            answers = self._answer(model, mode, prompts, task, self._num_pieces(length, share))
            found = [
                f | a | _score_prediction(task, a["prediction"], row["outputs"])
                for f, a, row in zip(found, answers, batch, strict=True)
            ]
        return [
            Record(row["id"], task, length, budget, row["length"] / length, row["outputs"], row["depths"], **values)
            for row, values in zip(batch, found, strict=True)
        ]

    def _rate(self, model, mode: AttentionMode, prompts: list[list[int]], batch: list[Row], length: int) -> list[dict]:
        answers = [self._ids(row["answer"]) for row in batch]
        rated = teacher_force(model, mode, prompts, answers, width=length)
        return [{"nll": answer.nll, "exact_match": answer.exact_match} for answer in rated]

    def _answer(
        self, model, mode: AttentionMode, prompts: list[list[int]], task: str, num_pieces: int | None
    ) -> list[dict]:
        """Predictions and bytes of the caches; with ``num_pieces`` the number of forward passes is fixed."""
        rows, lengths = [torch.tensor(prompt) for prompt in prompts], [len(prompt) for prompt in prompts]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        pieces = num_pieces or -(-max(lengths) // self._prefill_chunk_size)
        with mode.installed(model):
            with self.stopwatch.time("prefill", model.device):
                prompt = Prompt(model, input_ids, lengths, mode, pieces)
            num_bytes = cache_bytes(prompt.cache) // len(rows)
            with self.stopwatch.time("decoding", model.device):
                limit, ends = find_task(task).tokens_to_generate, sorted(self._end_tokens | _model_ends(model))
                new = prompt.decode(limit, ends, early_end=num_pieces is None)
        texts = self._tokenizer.batch_decode(_until_end(new.tolist(), ends), skip_special_tokens=True)
        return [{"prediction": text, "kv_bytes": num_bytes} for text in texts]

    def _num_pieces(self, length: int, share: Share) -> int | None:
        return None if share.world_size == 1 else -(-length // self._prefill_chunk_size)

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
