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
    """A tokenizer has no tokens for a sample's answer or the text before it, or its chat template not for its turns."""


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
        opening, document = self._texts_before(sample)
        own = tokenize(document + sample.question + template.after)
        before = tokenize(opening) if opening else []
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
        length = len(before) + len(own) + budget
        if self._too_long == "shorten" and (shorter := self._shorten(sample, opening, document, length)) is not None:
            return TokenizedSample(shorter + answer, len(answer), shortened=True)
        return None

    def _texts_before(self, sample: Sample) -> tuple[str, str]:
        """The text before the last user's turn, with a chat's earlier turns, and the document in that turn.

        Raises:
            NothingToLearn: the chat template does not take the turns.
        """
        if self._template.tokenizer is None:
            return self._template.before, sample.document
        try:
            return self._template.before_last(sample.turns), sample.own_document
        except InputError as error:
            raise NothingToLearn(f"{sample.id}: {error}") from error

    def _shorten(self, sample: Sample, opening: str, document: str, length: int) -> list[int] | None:
        """All before the answer in ``length`` tokens: start and end of the longest text, in equal parts, and the rest.

        The longest text is the document, or one of a chat's earlier turns that holds it.
        """
        end = sample.question + self._template.after
        contents = [content.strip() for role, content in sample.turns if role != "assistant"]
        longest = max(contents, key=len, default="") if document != sample.document else ""
        if len(longest) > len(document):
            opening, _, rest = opening.partition(longest)
            document, end = longest, rest + document + end
        first, middle, last = (self._tokenize(text) if text else [] for text in (opening, document, end))
        room = length - len(first) - len(last)
        if room <= 0:
            return None
        return first + middle[: room - room // 2] + middle[len(middle) - room // 2 :] + last
