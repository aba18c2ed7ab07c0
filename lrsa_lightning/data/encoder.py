"""Samples as token ids of at most a row, extended up to it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import Template
from lrsa_lightning.data.tokenization import LongTokenizer
from lrsa_lightning.errors import InputError

TooLong: TypeAlias = Literal["drop", "shorten"]


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as a model reads it.

    Attributes:
        ids: token ids; the last ``num_labels`` of them are labels.
        num_labels: tokens of the answer and of its end token.
        shortened: whether the middle of the document is missing.
    """

    ids: list[int]
    num_labels: int
    shortened: bool = False


class NothingToLearn(InputError):
    """A tokenizer has no tokens for a sample's answer, or for the text before it."""


class SampleEncoder:
    """Turns samples into token ids of at most ``seq_len``, extended up to it."""

    def __init__(
        self, tokenizer, template: Template, seq_len: int, extender: Extender | None, too_long: TooLong = "drop"
    ):
        """
        Args:
            tokenizer: a transformers tokenizer.
            template: texts around prompt and answer.
            seq_len: tokens of a training row.
            extender: fills up short samples; None leaves them short.
            too_long: drop leaves out samples longer than a row; shorten cuts the middle of their document.
        """
        self._tokenize = LongTokenizer(tokenizer)
        self._template = template
        self._seq_len = seq_len
        self._extender = extender
        self._too_long = too_long
        self._no_answer = self._tokenize(template.answer_start + template.answer_end)

    def __call__(self, sample: Sample) -> TokenizedSample | None:
        """The sample's token ids; None if it is longer than a row and is dropped, or cannot be shortened enough.

        Raises:
            NothingToLearn: the tokenizer has no tokens for the answer or the prompt; names file and row.
        """
        template, tokenize = self._template, self._tokenize
        answer = tokenize(template.answer_start + sample.answer + template.answer_end)
        own = tokenize(sample.prompt + template.after)
        before = tokenize(template.before) if template.before else []
        if not own or not answer or answer == self._no_answer:
            raise NothingToLearn(
                f"{sample.id}: the tokenizer has no tokens for the {'answer' if own else 'text'} of this row: use one "
                "that knows its language, or set data.bad_rows to skip"
            )
        # The last id is a label only: a row of seq_len inputs holds one id more.
        budget = self._seq_len + 1 - len(before) - len(own) - len(answer)
        if budget >= 0:
            sections = self._extender.sections(sample, budget, tokenize) if self._extender else []
            return TokenizedSample(before + sections + own + answer, len(answer))
        if self._too_long == "shorten" and (shorter := self._shorten(sample, len(own) + budget)) is not None:
            return TokenizedSample(before + shorter + answer, len(answer), shortened=True)
        return None

    def _shorten(self, sample: Sample, length: int) -> list[int] | None:
        """The prompt in ``length`` tokens: the document's start and end, in equal parts, and the complete question."""
        document, question = self._tokenize(sample.document), self._tokenize(sample.question + self._template.after)
        room = length - len(question)
        if room <= 0:
            return None
        return document[: room - room // 2] + document[len(document) - room // 2 :] + question
