"""Scores a model on RULER with a dense and with a compressed cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lrsa_lightning.attention import LRSA, AttentionMode, Vanilla
from lrsa_lightning.data.template import TemplateName
from lrsa_lightning.generation import generate
from lrsa_lightning.ruler.tasks import find_task, make_samples


@dataclass(frozen=True)
class RulerScore:
    """Sum over samples of one task at one length under one cache budget.

    Attributes:
        task: name of the task.
        length: its maximum length in tokens.
        budget: retention ratio r of the cache, 1 dense.
        total: sum of the samples' scores, each 0..1.
        count: number of samples.
    """

    task: str
    length: int
    budget: float
    total: float
    count: int

    @property
    def name(self) -> str:
        """Name of the metric in logs."""
        return f"ruler/{self.task}/{self.length}/r{self.budget:g}"

    @property
    def percent(self) -> float:
        """RULER's score, 0..100."""
        return round(100 * self.total / self.count, 2)


class RulerEvaluator:
    """Makes its samples once and scores any model on them, chunk by chunk through the compressed cache."""

    def __init__(
        self,
        tokenizer,
        tasks: Sequence[str],
        lengths: Sequence[int],
        budgets: Sequence[float] = (1.0, 0.5, 0.25),
        num_samples: int = 16,
        lag_divisor: int = 32,
        sink_size: int = 16,
        batch_size: int = 8,
        template: TemplateName = "base",
        seed: int = 42,
    ):
        """
        Args:
            tokenizer: the model's.
            tasks: names in `TASKS`.
            lengths: maximum lengths in tokens.
            budgets: retention ratios r of the cache; 1 is dense.
            num_samples: samples of each task and length.
            lag_divisor: lag = length / lag_divisor, as in the paper's Table 1.
            sink_size: S of the compressed cache.
            batch_size: prompts decoded together.
            template: base or chatml.
            seed: of the samples.

        Raises:
            InputError: unknown task, or a length its text does not fit.
        """
        self.tokenizer = tokenizer
        self.budgets = budgets
        self.lag_divisor = lag_divisor
        self.sink_size = sink_size
        self.batch_size = batch_size
        self._samples = {
            (task, length): make_samples(task, tokenizer, length, num_samples, seed, template)
            for task in tasks
            for length in lengths
        }

    def mode(self, length: int, budget: float) -> AttentionMode:
        """The attention a budget is measured with, whatever the model was trained with."""
        if budget == 1:
            return Vanilla()
        lag_size = max(1, length // self.lag_divisor)
        return LRSA(lag_size=lag_size, retention_ratio=budget, sink_size=self.sink_size)

    @torch.no_grad()
    def evaluate(self, model, rank: int = 0, world_size: int = 1) -> Iterator[RulerScore]:
        """Yields the scores one by one; leaves the model's attention and train mode as they were.

        Args:
            model: a transformers causal decoder.
            rank: scores every world_size-th sample from this one on, for a caller who adds up over ranks.
            world_size: number of ranks.
        """
        training = model.training
        model.eval()
        try:
            for (task, length), samples in self._samples.items():
                for budget in self.budgets:
                    mine = samples[rank::world_size]
                    scores = self._score(model, find_task(task), mine, self.mode(length, budget))
                    yield RulerScore(task, length, budget, sum(scores), len(mine))
        finally:
            model.train(training)

    def _score(self, model, task, samples: list[dict], mode: AttentionMode) -> list[float]:
        scores = []
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            predictions = self._predict(model, batch, mode, task.tokens_to_generate)
            scores += [task.metric(p, row["outputs"]) for p, row in zip(predictions, batch, strict=True)]
        return scores

    def _predict(self, model, batch: list[dict], mode: AttentionMode, max_new_tokens: int) -> list[str]:
        encode = partial(self.tokenizer, add_special_tokens=False)
        rows = [torch.tensor(encode(row["input"] + row["answer_prefix"])["input_ids"]) for row in batch]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        new = generate(
            model,
            input_ids,
            mode,
            max_new_tokens,
            lengths=[len(row) for row in rows],
            eos_token_id=self.tokenizer.eos_token_id,
        )
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)
