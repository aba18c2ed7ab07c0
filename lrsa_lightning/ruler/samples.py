"""Samples of a task, fitted to a length."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeAlias

from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, checked
from lrsa_lightning.ruler.fitting import DoesNotFit, Fit, largest_fit
from lrsa_lightning.ruler.niah import Niah
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text
from lrsa_lightning.ruler.tasks import Setting, find_task

log = logging.getLogger(__name__)

# A sample with RULER's fields and ours, as files hold it.
Row: TypeAlias = Mapping[str, Any]

# Of the budget: a fuller prompt is not worth another tokenisation of all of it.
_ENOUGH = 0.98
_FIRST_GUESS = 100
_LEAST_FILL = 0.95


class NotAtThisLength(InputError):
    """A task's own text leaves no room for a sample at a length, or for too few samples."""


@checked
def make_samples(
    task: str,
    tokenizer,
    max_length: PositiveInt,
    num_samples: PositiveInt,
    seed: NonNegativeInt = 42,
    template: TemplateName = "base",
    *,
    essays: str | Path | None = None,
    squad: str | Path | None = None,
    hotpotqa: str | Path | None = None,
    english_words: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Samples of one task at one length.

    Sample i depends on (seed, task, max_length, i) and on the tokenizer alone, so subsets are stable. Questions whose
    own documents do not fit are skipped.

    Args:
        task: name in `TASKS`.
        tokenizer: counts the tokens.
        max_length: tokens of prompt, template, answer prefix and new tokens together.
        num_samples: how many.
        seed: of the draws.
        template: base or chatml; the answer prefix starts the assistant's turn.
        essays: PaulGrahamEssays.json, for niah_single_2, _3, niah_multikey_1, niah_multivalue and niah_multiquery.
        squad: squad.json, for qa_1.
        hotpotqa: hotpotqa.json, for qa_2.
        english_words: english_words.json, for cwe beyond 64K tokens.

    Returns:
        rows with id, index, task, max_length, input, answer_prefix (follows input in the prompt), outputs, answer
        (outputs in the style of the task's example), depths (0..1, of each output that has a place), length (tokens of
        the prompt plus tokens_to_generate), length_w_model_temp (the same: it includes the template) and, for niah,
        token_position_answer.

    Raises:
        InputError: the task is unknown, a number is out of its range, a file of the task is missing or has another
            format, or a sample cannot fit max_length.
    """
    settings = SampleSettings(seed, template, Sources(essays, squad, hotpotqa, english_words))
    return SampleMaker(task, tokenizer, max_length, settings).make(num_samples)


@dataclass(frozen=True)
class SampleSettings:
    """What samples of all tasks, lengths and numbers have in common.

    Attributes:
        seed: of the draws.
        template: base or chatml.
        sources: files of some tasks.
    """

    seed: int = 42
    template: TemplateName = "base"
    sources: Sources = field(default_factory=Sources)


class _Prompt(NamedTuple):
    input: str
    text: Text


class SampleMaker:
    """Draws the samples of one task at one length, with the arguments of `make_samples`."""

    def __init__(self, task: str, tokenizer, max_length: int, settings: SampleSettings):
        self._spec = find_task(task)
        self.task, self.max_length, self.seed = task, max_length, settings.seed
        self._budget = max_length - self._spec.tokens_to_generate
        self._tokenizer = tokenizer
        setting = Setting(max_length, self._budget, settings.sources, self._count_tokens)
        self._generator: TaskGenerator = self._spec.make(setting)
        self._template = make_template(settings.template, tokenizer)
        self._skipped = 0

    def make(self, num_samples: int, made: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
        """The first samples; calls ``made`` after each.

        Raises:
            NotAtThisLength: a sample cannot fit, or too few of the task's questions fit.
        """
        rows = []
        for index, fit in zip(range(num_samples), self._fits(), strict=False):
            rows.append(self._row(index, fit))
            made()
        if self._skipped:
            what = f"RULER {self.task} at length {self.max_length}"
            log.info("%s: %d questions skipped, because their own documents do not fit", what, self._skipped)
        return rows

    def _fits(self) -> Iterator[Fit[_Prompt]]:
        items, guess = self._generator.items(), None
        for item in count() if items is None else items:
            try:
                fit = self._fit(item, guess or _FIRST_GUESS)
            except DoesNotFit as error:
                if items is None:
                    raise self._refusal(f"{error} (length less new tokens)") from None
                self._skipped += 1
                continue
            # Samples of one length need much the same haystack. The guess is always the first sample's size: no sample
            # may depend on how many samples there are.
            guess = guess or fit.units
            yield fit
        fitting = len(items) - self._skipped
        raise self._refusal(f"only {fitting} of {len(items)} questions fit, with their documents")

    def _fit(self, item: int, guess: int) -> Fit[_Prompt]:
        """The largest prompt of a question or draw that fits the budget."""
        generator = self._generator
        fit = largest_fit(
            lambda units: self._prompt(item, units),
            lambda prompt: self._count_tokens(prompt.input + prompt.text.answer_prefix),
            self._budget,
            guess,
            generator.min_units,
            generator.max_units,
            _ENOUGH,
        )
        if fit.units == generator.max_units and self._length(fit) < _LEAST_FILL * self.max_length:
            raise self._refusal(f"has no more than {fit.units} words; english_words holds more")
        return fit

    def _prompt(self, item: int, units: int) -> _Prompt:
        draws = Draws(Random(f"{self.seed}:{self.task}:{self.max_length}:{item}"), item)
        text = self._generator.generate(draws, units)
        turn = self._template.before + text.user + self._template.after
        if text.example is not None:
            user, answer = text.example
            turn = self._template.before + user + self._template.after + text.answer_prefix + answer + "\n" + turn
        return _Prompt(turn, text)

    def _count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _length(self, fit: Fit[_Prompt]) -> int:
        return fit.tokens + self._spec.tokens_to_generate

    def _refusal(self, reason: str) -> NotAtThisLength:
        return NotAtThisLength(f"RULER {self.task} at length {self.max_length}: {reason}")

    def _row(self, index: int, fit: Fit[_Prompt]) -> dict[str, Any]:
        text, length = fit.prompt.text, self._length(fit)
        row = {
            "id": f"{self.task}-{self.max_length}-{self.seed}-{index}",
            "index": index,
            "task": self.task,
            "max_length": self.max_length,
            "input": fit.prompt.input,
            "answer_prefix": text.answer_prefix,
            "outputs": text.outputs,
            "answer": self._spec.answer(text.outputs),
            "depths": text.depths,
            "length": length,
            "length_w_model_temp": length,
        }
        if isinstance(self._generator, Niah):
            before = fit.prompt.input[: fit.prompt.input.find(text.outputs[0])]
            row["token_position_answer"] = self._count_tokens(before)
        return row


def check_row(row: Row, fields: Mapping[str, type], where: str) -> None:
    """Checks that a row of a file has the fields an evaluation reads, outputs among them.

    Args:
        row: of the file.
        fields: name -> type.
        where: file and line, for the error.

    Raises:
        InputError: a field is missing or has another type, or outputs is no list of texts.
    """
    for name, expected in fields.items():
        if not isinstance(row.get(name), expected):
            raise InputError(f"{where}: {name} is {row.get(name)!r}, expected a {expected.__name__}")
    if not row["outputs"] or not all(isinstance(output, str) for output in row["outputs"]):
        raise InputError(f"{where}: outputs are {row['outputs']!r}, expected a list of texts, one at least")


def digest(row: Row) -> str:
    """16 hexadecimal digits that identify a sample's question and its answers, whatever its id."""
    content = [row[name] for name in ("input", "answer_prefix", "outputs", "answer")]
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()[:16]
