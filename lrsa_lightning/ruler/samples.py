"""Samples of a task, fitted to a length."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from lrsa_lightning.data.template import Template, TemplateName, make_template
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt, checked
from lrsa_lightning.ruler.fitting import DoesNotFit, Fit, largest_fit, official_fit, official_units
from lrsa_lightning.ruler.niah import Niah, singular
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.task_generator import Draws, TaskGenerator, Text
from lrsa_lightning.ruler.tasks import Setting, find_task

log = logging.getLogger(__name__)

# Of the budget: a fuller prompt is not worth another tokenisation of all of it.
_ENOUGH = 0.98
_FIRST_GUESS = 100
_LEAST_FILL = 0.95


class NotAtThisLength(InputError):
    """A task's own text leaves its samples no room at a length, or leaves fewer of them than asked for."""


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
    official_compat: bool = False,
) -> list[dict[str, Any]]:
    """Samples of one task at one length.

    Sample i depends on (seed, task, max_length, i) and the tokenizer alone, so subsets are stable. Questions whose own
    documents do not fit are passed over.

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
        official_compat: sizes and orders as in the official code: the same order of needles, words and documents in
            all samples, questions in the file's order, coarse steps, one stream of random numbers.

    Returns:
        rows with id, index, task, max_length, input, answer_prefix (to be sent behind input), outputs, answer (outputs
        as the task's example writes them), depths (0..1, of each output, where it has one), length (tokens of the
        prompt plus tokens_to_generate), length_w_model_temp (the same: the template is counted in) and, for niah,
        token_position_answer.

    Raises:
        InputError: unknown task, a number out of its range, a file the task needs is not there or holds something else,
            or a sample that cannot fit max_length.
    """
    sources = Sources(essays, squad, hotpotqa, english_words)
    settings = SampleSettings(seed, template, sources, official_compat)
    return SampleMaker(task, tokenizer, max_length, settings).make(num_samples)


@dataclass(frozen=True)
class SampleSettings:
    """What samples have in common, whatever their task, length and number.

    Attributes:
        seed: of the draws.
        template: base or chatml.
        sources: files some tasks need.
        official_compat: sizes and orders as in the official code.
    """

    seed: int = 42
    template: TemplateName = "base"
    sources: Sources = field(default_factory=Sources)
    official_compat: bool = False


@dataclass(frozen=True)
class _Prompt:
    input: str
    text: Text


class SampleMaker:
    """Draws the samples of one task at one length until they fit."""

    def __init__(self, task: str, tokenizer, max_length: int, settings: SampleSettings):
        """
        Args:
            task: name in `TASKS`.
            tokenizer: counts the tokens.
            max_length: tokens of prompt, template, answer prefix and new tokens together.
            settings: the rest.

        Raises:
            InputError: unknown task, or a file it needs is not there.
        """
        spec = find_task(task)
        self.task = task
        self.max_length = max_length
        self.seed = settings.seed
        self._new_tokens = spec.tokens_to_generate
        self._budget = max_length - spec.tokens_to_generate
        self._tokenizer = tokenizer
        self._official = settings.official_compat
        setting = Setting(max_length, self._budget, settings.sources, self._count_tokens, self._official)
        self._generator: TaskGenerator = spec.make(setting)
        self._template = self._make_template(settings.template)
        self._passed_over = 0

    def make(self, num_samples: int) -> list[dict[str, Any]]:
        """The first samples.

        Raises:
            InputError: a sample cannot fit, or too few of the task's questions do.
        """
        fits = self._official_fits() if self._official else self._fits()
        rows = [self._row(index, fit) for index, fit in zip(range(num_samples), fits, strict=False)]
        if self._passed_over:
            what = f"RULER {self.task} at length {self.max_length}"
            log.info("%s: %d questions passed over, whose own documents do not fit", what, self._passed_over)
        return rows

    def _fits(self) -> Iterator[Fit[_Prompt]]:
        kind, items = self._generator, self._generator.items()
        guess = None
        for item in count() if items is None else items:
            try:
                fit = largest_fit(
                    lambda units: self._prompt(self._own_draws(item), units),  # noqa: B023  called at once
                    self._count_prompt,
                    self._budget,
                    guess or _FIRST_GUESS,
                    kind.min_units,
                    kind.max_units,
                    _ENOUGH,
                )
            except DoesNotFit as error:
                if items is None:
                    raise self._refusal(f"{error} (length less new tokens)") from None
                self._passed_over += 1
                continue
            # Samples of one length need much the same haystack. Always the first one's: later ones must not depend
            # on how many are made.
            guess = guess or fit.units
            yield self._filled(fit)
        fitting = len(items) - self._passed_over
        raise self._refusal(f"only {fitting} of {len(items)} questions fit, with their documents")

    def _official_fits(self) -> Iterator[Fit[_Prompt]]:
        rng, steps = Random(self.seed), self._generator.official_steps()
        items = self._generator.items()
        first = 0 if items is None else items[0]

        def prompt(item: int, units: int) -> _Prompt:
            return self._prompt(Draws(rng, item, fixed_order=self.seed), units)

        def tokens_of(units: int) -> int:
            return self._count_prompt(prompt(first, units))

        units = official_units(tokens_of, steps, self._budget, self.max_length, self._generator.max_units)
        for item in count() if items is None else items:
            try:
                fit = official_fit(partial(prompt, item), self._count_prompt, self._budget, units, steps.step)
                yield self._filled(fit)
            except DoesNotFit as error:
                raise self._refusal(f"sample {item} {error}; without official_compat it may") from None
        raise self._refusal(f"there are {len(items)} questions")

    def _filled(self, fit: Fit[_Prompt]) -> Fit[_Prompt]:
        """The fit, if it is not short of units.

        Raises:
            InputError: it has all there are, and they fill too little.
        """
        if fit.units == self._generator.max_units and fit.tokens + self._new_tokens < _LEAST_FILL * self.max_length:
            raise self._refusal(f"has no more than {fit.units} words; english_words holds more")
        return fit

    def _own_draws(self, item: int) -> Draws:
        return Draws(Random(f"{self.seed}:{self.task}:{self.max_length}:{item}"), item)

    def _make_template(self, name: TemplateName) -> Template:
        template = make_template(name, self._tokenizer)
        if self._official and isinstance(self._generator, Niah) and self._generator.asks_for_one:
            # The official code edits the chat template too.
            return replace(template, before=singular(template.before), after=singular(template.after))
        return template

    def _prompt(self, draws: Draws, units: int) -> _Prompt:
        text = self._generator.generate(draws, units)
        turn = self._template.before + text.user + self._template.after
        if text.example is not None:
            user, answer = text.example
            turn = self._template.before + user + self._template.after + text.answer_prefix + answer + "\n" + turn
        return _Prompt(turn, text)

    def _count_prompt(self, prompt: _Prompt) -> int:
        return self._count_tokens(prompt.input + prompt.text.answer_prefix)

    def _count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _refusal(self, reason: str) -> NotAtThisLength:
        return NotAtThisLength(f"RULER {self.task} at length {self.max_length}: {reason}")

    def _row(self, index: int, fit: Fit[_Prompt]) -> dict[str, Any]:
        text, length = fit.prompt.text, fit.tokens + self._new_tokens
        row = {
            "id": f"{self.task}-{self.max_length}-{self.seed}-{index}",
            "index": index,
            "task": self.task,
            "max_length": self.max_length,
            "input": fit.prompt.input,
            "answer_prefix": text.answer_prefix,
            "outputs": text.outputs,
            "answer": text.answer,
            "depths": text.depths,
            "length": length,
            "length_w_model_temp": length,
        }
        if isinstance(self._generator, Niah):
            before = fit.prompt.input[: fit.prompt.input.find(text.outputs[0])]
            row["token_position_answer"] = self._count_tokens(before)
        return row


def digest(row: Mapping[str, Any]) -> str:
    """Of what a sample asks and expects, in 16 hexadecimal digits: another content under the same id has another."""
    content = [row[key] for key in ("input", "answer_prefix", "outputs", "answer")]
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()[:16]
