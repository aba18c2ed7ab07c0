"""Scores of a batch of samples: generated answers and the likelihood of the references."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler.batch_sizes import tokens_of_a_pass
from lrsa_lightning.ruler.batches import Batch
from lrsa_lightning.ruler.records import Record
from lrsa_lightning.ruler.samples import Row, digest
from lrsa_lightning.ruler.tasks import find_task, match_all
from lrsa_lightning.ruler.teacher_forcing import rate_after, teacher_force


class Stopwatch:
    """Seconds of each part of an evaluation, including the accelerator's work."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str, device: torch.device) -> Iterator[None]:
        """Adds the time of a `with` block to a part."""
        started = time.perf_counter()
        yield
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self.seconds[part] += time.perf_counter() - started


@dataclass(frozen=True)
class BatchScorer:
    """Scores batches of prompts of one length and cache budget.

    Attributes:
        tokenizer: the model's.
        prefill_chunk_size: prompt tokens in a forward pass.
        end_tokens: ids that end an answer, besides the model's own.
        generation: whether it generates answers and scores them.
        teacher_forcing: whether it rates the references.
        fixed_passes: whether the number of forward passes depends on the batch of all ranks alone.
        stopwatch: the time of each part.
    """

    tokenizer: Any
    prefill_chunk_size: int
    end_tokens: frozenset[int]
    generation: bool
    teacher_forcing: bool
    fixed_passes: bool
    stopwatch: Stopwatch

    def score(self, model, mode: AttentionMode, batch: Batch, rows: Sequence[Row]) -> list[Record]:
        """The records of a rank's rows of a batch.

        Args:
            model: a transformers causal decoder in evaluation mode.
            mode: of the batch's budget.
            batch: the rows of all ranks.
            rows: of this rank.
        """
        prompts = self._ids([row["input"] + row["answer_prefix"] for row in rows])
        measured = self._answer if self.generation else self._rate
        return [
            Record(
                id=row["id"],
                task=row["task"],
                length=row["max_length"],
                budget=batch.budget,
                fill=row["length"] / row["max_length"],
                outputs=row["outputs"],
                depths=row["depths"],
                digest=digest(row),
                **values,
            )
            for row, values in zip(rows, measured(model, mode, prompts, batch, rows), strict=True)
        ]

    def _rate(
        self, model, mode: AttentionMode, prompts: list[list[int]], batch: Batch, rows: Sequence[Row]
    ) -> list[dict]:
        """The rating of the references alone, which needs no cache."""
        answers = self._ids([row["answer"] for row in rows])
        with self.stopwatch.time("rating", model.device):
            rated = teacher_force(model, mode, prompts, answers, batch.length)
        return [answer._asdict() for answer in rated]

    def _answer(
        self, model, mode: AttentionMode, prompts: list[list[int]], batch: Batch, rows: Sequence[Row]
    ) -> list[dict]:
        """The answers, and the rating of the references after the same prefill."""
        ids, lengths = [torch.tensor(prompt) for prompt in prompts], [len(prompt) for prompt in prompts]
        input_ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(model.device)
        piece = tokens_of_a_pass(self.prefill_chunk_size, len(rows), model.device)
        num_pieces = -(-(batch.length if self.fixed_passes else max(lengths)) // piece)
        ends = sorted(self.end_tokens | _model_ends(model))
        limits = {row["task"]: find_task(row["task"]).tokens_to_generate for row in batch.rows}
        with self.stopwatch.time("prefill", model.device):
            # The length of the samples includes the new tokens.
            prompt = Prompt(model, input_ids, lengths, mode.for_length(batch.length), num_pieces)
        values: dict[str, Any] = {"kv_bytes": cache_bytes(prompt.cache) // len(rows)}
        rated = self._rate_after(model, prompt, rows) if self.teacher_forcing else [{}] * len(rows)
        with self.stopwatch.time("decoding", model.device):
            new = prompt.decode(max(limits.values()), ends, early_end=not self.fixed_passes).tolist()
        # Each row stops at its own task's limit, as if alone.
        new = [ids[: limits[row["task"]]] for ids, row in zip(new, rows, strict=True)]
        texts = self.tokenizer.batch_decode(_until_end(new, ends), skip_special_tokens=True)
        return [values | own | _scored(text, row) for own, text, row in zip(rated, texts, rows, strict=True)]

    def _rate_after(self, model, prompt: Prompt, rows: Sequence[Row]) -> list[dict]:
        with self.stopwatch.time("rating", model.device):
            rated = rate_after(model, prompt, self._ids([row["answer"] for row in rows]))
        return [answer._asdict() for answer in rated]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; the tokenizer takes all at once, on several cores."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _scored(prediction: str, row: Row) -> dict[str, Any]:
    return {
        "prediction": prediction,
        "score": find_task(row["task"]).metric(prediction, row["outputs"]),
        "hits": [match_all(prediction, [output]) == 1 for output in row["outputs"]],
    }


def _model_ends(model) -> set[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return set() if ends is None else set(torch.tensor(ends).flatten().tolist())


def _until_end(rows: list[list[int]], ends: Collection[int]) -> list[list[int]]:
    """The new tokens of each row before its end token."""
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
