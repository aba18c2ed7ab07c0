"""The RULER check of a run in a plan: its cells, the largest KV cache and its time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.batch_sizes import cache_bytes
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.check_time import automatic_seconds
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.tasks import TASKS, light_tasks

# RulerEval's lengths, where none are given: this one and the training length.
_CONTROL_LENGTH = 4096


@dataclass(frozen=True)
class RulerCheck:
    """The callback RulerEval, as the configuration gives it.

    Attributes:
        tasks: names.
        lengths: in tokens.
        budgets: cache budgets.
        num_samples: of each task and length.
        batch_size: prompts scored together.
        prefill_chunk_size: prompt tokens in a forward pass.
        every_n_steps: optimizer steps between two checks; None: one check alone, after the last step.
        generation: always, ends or never.
        max_seconds: of a check; auto; None: no limit.
    """

    tasks: Sequence[str]
    lengths: Sequence[int]
    budgets: CacheBudgets
    num_samples: int
    batch_size: int
    prefill_chunk_size: int
    every_n_steps: int | None
    generation: str
    max_seconds: float | str | None

    @classmethod
    def of(cls, callbacks: Any, seq_len: int) -> "RulerCheck | None":
        """
        Args:
            callbacks: the value of trainer.callbacks.
            seq_len: tokens of a training row.
        """
        listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        given = next((vars(c.init_args) for c in listed if c.class_path.endswith(".RulerEval")), None)
        if given is None:
            return None
        budgets = CacheBudgets(given["budgets"], given["lag_divisor"], given["sink_size"])
        lengths = given["lengths"] or sorted({min(_CONTROL_LENGTH, seq_len), seq_len})
        tasks = light_tasks(Sources()) if given["tasks"] is None else given["tasks"]
        names = ("num_samples", "batch_size", "prefill_chunk_size", "every_n_steps", "generation")
        names += ("max_seconds",)
        return cls(tasks, [n for n in lengths if _has_meaning(budgets, n)], budgets, *(given[name] for name in names))

    def cells(self) -> Iterator[tuple[str, int, AttentionMode]]:
        """Task, length and attention of each cell."""
        for length in self.lengths:
            for label in self.budgets.labels:
                for task in self.tasks:
                    yield task, length, self.budgets.mode(length, label)

    @property
    def rows(self) -> int:
        """Prompts in a batch, of several tasks."""
        return min(self.batch_size, self.num_samples * len(self.tasks))

    def cache_bytes(self, config, element: int) -> int:
        """Of the largest batch, as requested."""
        sizes = (cache_bytes(mode, length, config, element) for _, length, mode in self.cells())
        return self.rows * max(sizes, default=0)

    def num_checks(self, max_steps: int) -> int:
        """Checks of a run, the first one and the last one included."""
        return 1 if self.every_n_steps is None else 1 + -(-max_steps // self.every_n_steps)

    def new_tokens(self) -> int:
        """Decoding steps of one check that generates, all batches one after the other."""
        batches = -(-self.num_samples * len(self.tasks) // self.rows) * len(self.lengths) * len(self.budgets.labels)
        return batches * max((TASKS[task].tokens_to_generate for task in self.tasks), default=0)

    def seconds(self, needed: float, trained: float) -> float:
        """Of a check that needs so many seconds, after so many of training."""
        limit = automatic_seconds(trained) if self.max_seconds == "auto" else self.max_seconds
        return needed if limit is None else min(needed, limit)


def _has_meaning(budgets: CacheBudgets, length: int) -> bool:
    try:
        budgets.check_lengths([length])
    except InputError:
        return False
    return True
