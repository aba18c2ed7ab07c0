"""What a run is scored on: the tasks, lengths and budgets of its callback, and their samples."""

import logging
from collections.abc import Sequence
from itertools import product
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.budgets import CacheBudgets
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.ruler.tasks import check_tasks, light_tasks, possible_tasks

log = logging.getLogger(__name__)

_CONTROL_LENGTH = 4096


class Plan:
    """Tasks, lengths and budgets, checked when the plan is made, before anything else is read."""

    def __init__(
        self,
        tasks: Sequence[str] | None,
        lengths: Sequence[int] | None,
        budgets: CacheBudgets,
        sources: Sources,
        skip_missing: bool,
        num_samples: int,
    ):
        """
        Args:
            tasks: by name; None: the light choice.
            lengths: in tokens; None: the training length and a control.
            budgets: of the cache.
            sources: files of some tasks.
            skip_missing: leave out tasks whose file is not given.
            num_samples: of each task and length.

        Raises:
            InputError: a list is empty or holds a value twice, a task is unknown, a budget has no meaning at a length,
                or a file is missing or has another format.
        """
        if lengths is not None:
            check_choice(lengths, "RulerEval.lengths")
            for length in lengths:
                budgets.check_length(length)
        if tasks is not None:
            check_tasks(tasks, "RulerEval.tasks")
        self._is_light = tasks is None
        self._tasks = possible_tasks(light_tasks(sources) if tasks is None else tasks, sources, skip_missing)
        self._lengths = lengths
        self._budgets = budgets
        self._num_samples = num_samples

    def lengths(self, seq_len: int) -> list[int]:
        """The given lengths, or the training length and a control where every budget has a meaning."""
        if self._lengths is not None:
            return list(self._lengths)
        lengths = []
        for length in sorted({min(_CONTROL_LENGTH, seq_len), seq_len}):
            try:
                self._budgets.check_length(length)
                lengths.append(length)
            except InputError as error:
                log.warning("RULER is left out at length %d: %s", length, error)
        return lengths

    def samples(self, store: SampleStore, lengths: Sequence[int]) -> dict[tuple[str, int], list[Any]]:
        """The samples by task and length; of the light choice only those that fit.

        Raises:
            InputError: a chosen task does not fit a length.
        """
        cells = product(self._tasks, lengths)
        return store.samples_that_fit(cells, self._num_samples, log.info if self._is_light else None)
