"""Makes the rows of a recipe, each by its number, in several processes."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lrsa_lightning.data.workers import end_with_parent
from lrsa_lightning.errors import InputError
from lrsa_lightning.recipe.needles import KINDS, draw_needles
from lrsa_lightning.recipe.questions import QuestionDraw
from lrsa_lightning.recipe.rows import Draw, Fitter, Row, seeded
from lrsa_lightning.ruler.documents import Question, Questions
from lrsa_lightning.ruler.fitting import DoesNotFit
from lrsa_lightning.ruler.sources import Essays, parse

_OF_QUESTIONS = ("squad", "hotpotqa")


@dataclass(frozen=True)
class Made:
    """A row, its kind and its tokens."""

    row: Row
    kind: str
    tokens: int


@dataclass(frozen=True)
class RowMaker:
    """Makes row i from (seed, i) and the sources.

    Attributes:
        contents: by source: `squad`, `hotpotqa`, `essays`, or some of them.
        fitter: knows the length.
        seed: of all draws.
        question_fraction: of the rows; the others have needles. Without sources of questions there are only needles.
    """

    contents: Mapping[str, Any]
    fitter: Fitter
    seed: str
    question_fraction: float

    def __call__(self, index: int) -> Made:
        """Raises an InputError if nothing of the row's kind fits the length."""
        fraction = self.question_fraction if self._questions else 0.0
        number = int(index * fraction)
        kind = "question" if int((index + 1) * fraction) > number else KINDS[(index - number) % len(KINDS)]
        draw = self._question(number) if kind == "question" else self._needles(kind, index)
        try:
            return Made(*self._filled(draw, kind))
        except DoesNotFit as error:
            raise InputError(f"--length {self.fitter.length} is too short: a row of kind {kind} {error}") from error

    def _filled(self, draw: Draw, kind: str) -> tuple[Row, str, int]:
        row, tokens = self.fitter.fill(draw)
        return row, kind, tokens

    def _question(self, number: int) -> Draw:
        """Questions come in a random order, each once, then again among other documents."""
        data, question = self._questions[number % len(self._questions)]
        return QuestionDraw.of(data, question, seeded(self.seed, "question", number))

    def _needles(self, kind: str, index: int) -> Draw:
        return draw_needles(kind, self._prose, seeded(self.seed, kind, index))

    @cached_property
    def _sources(self) -> list[Questions]:
        return [parse(name, self.contents[name]) for name in _OF_QUESTIONS if self.contents.get(name)]

    @cached_property
    def _questions(self) -> list[tuple[Questions, Question]]:
        """Those whose own documents fit, in a random order."""
        every = [(data, question) for data in self._sources for question in data.questions]
        fitting = [pair for pair in every if self.fitter.fits(QuestionDraw(*pair, [], 0))]
        if every and not fitting:
            raise InputError(f"--length {self.fitter.length} is too short: no question fits with its own documents")
        seeded(self.seed, "order").shuffle(fitting)
        return fitting

    @cached_property
    def _prose(self) -> list[str]:
        """The sentences of all sources."""
        texts = [text for data in self._sources for text in data.documents]
        text = " ".join([*texts, self.contents["essays"]["text"]] if "essays" in self.contents else texts)
        return Essays(text).sentences(len(text.split())) if text else []

    def prepare(self) -> None:
        """Reads the sources, before other processes inherit them."""
        _ = self._questions, self._prose


_maker: RowMaker | None = None  # a worker inherits it through its fork


def make_rows(maker: RowMaker, count: int, num_workers: int) -> Iterator[Made]:
    """The first rows, in order."""
    maker.prepare()
    if num_workers <= 1:
        yield from map(maker, range(count))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a forked tokenizer must not use threads
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(maker,)) as pool:
        yield from pool.map(_make, range(count), chunksize=8)


def _begin(maker: RowMaker) -> None:
    global _maker
    _maker = maker
    end_with_parent()


def _make(index: int) -> Made:
    return _maker(index)
