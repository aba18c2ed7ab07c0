"""Samples as token ids of at most a row, extended up to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import Piece, Template
from lrsa_lightning.data.tokenization import LongTokenizer
from lrsa_lightning.errors import InputError

TooLong: TypeAlias = Literal["drop", "shorten"]
Learn: TypeAlias = Literal["last", "all"]


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as a model reads it.

    Attributes:
        ids: token ids; the last ``num_labels`` of them are labels.
        num_labels: tokens of the answer and of its end token.
        shortened: whether the middle of the document is missing.
        learned: start and stop of each earlier answer whose ids are labels too, one after the other.
    """

    ids: list[int]
    num_labels: int
    shortened: bool = False
    learned: Sequence[int] = ()

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and stop of the ids of each answer that are labels, the last one's included."""
        earlier = [*zip(self.learned[::2], self.learned[1::2], strict=True)]
        return [*earlier, (len(self.ids) - self.num_labels, len(self.ids))]


class NothingToLearn(InputError):
    """A tokenizer has no tokens for a sample's answer or the text before it, or its chat template not for its turns."""


class SampleEncoder:
    """Turns samples into token ids of at most ``seq_len``, extended up to it."""

    def __init__(
        self,
        tokenizer,
        template: Template,
        seq_len: int,
        extender: Extender | None,
        too_long: TooLong = "drop",
        learn: Learn = "last",
    ):
        """
        Args:
            tokenizer: a transformers tokenizer.
            template: texts around prompt and answer.
            seq_len: tokens of a training row.
            extender: fills up short samples; None leaves them short.
            too_long: drop leaves out samples longer than a row; shorten cuts the middle of their document.
            learn: the last answer of a chat, or all of them.
        """
        self._tokenize = LongTokenizer(tokenizer)
        self._template = template
        self._seq_len = seq_len
        self._extender = extender
        self._too_long = too_long
        self._learns_all = learn == "all"
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
        before, learned = self._joined(self._ids(opening))
        if not own or not answer or answer == self._no_answer:
            raise NothingToLearn(
                f"{sample.id}: the tokenizer has no tokens for the {'answer' if own else 'text'} of this row: use one "
                "that knows its language, or set data.bad_rows to skip"
            )
        # The last id is a label only: a row of seq_len inputs holds one id more.
        budget = self._seq_len + 1 - len(before) - len(own) - len(answer)
        if budget >= 0:
            sections = self._extender.sections(sample, budget, tokenize) if self._extender else []
            return TokenizedSample(before + sections + own + answer, len(answer), learned=learned)
        if self._too_long == "drop":
            return None
        shorter = self._shorten(sample, opening, document, len(before) + len(own) + budget)
        if shorter is None:
            return None
        ids, learned = self._joined(shorter)
        return TokenizedSample(ids + answer, len(answer), shortened=True, learned=learned)

    def _texts_before(self, sample: Sample) -> tuple[list[Piece], str]:
        """The text before the last user's turn, with a chat's earlier turns, and the document in that turn.

        Raises:
            NothingToLearn: the chat template does not take the turns.
        """
        template = self._template
        if template.tokenizer is None:
            return [(template.before, False)], sample.document
        try:
            opening = template.before_last(sample.turns)
            learns = self._learns_all and sample.turns
            return template.with_answers(opening, sample.turns) if learns else [(opening, False)], sample.own_document
        except InputError as error:
            raise NothingToLearn(f"{sample.id}: {error}") from error

    def _shorten(
        self, sample: Sample, opening: list[Piece], document: str, length: int
    ) -> list[tuple[list[int], bool]] | None:
        """All before the answer in ``length`` tokens: start and end of the longest text, in equal parts, and the rest.

        The longest text is the document, or one of a chat's earlier turns that holds it.
        """
        pieces = [*opening, (document, False), (sample.question + self._template.after, False)]
        contents = [content.strip() for role, content in sample.turns if role != "assistant"]
        longest, at = max(contents, key=len, default="") if document != sample.document else "", len(opening)
        if len(longest) > len(document):
            at = next(index for index, (text, is_label) in enumerate(opening) if longest in text and not is_label)
            first, _, last = pieces[at][0].partition(longest)
            pieces[at : at + 1] = [(first, False), (longest, False), (last, False)]
            at += 1
        ids = self._ids(pieces)
        middle = ids[at][0]
        room = length - sum(len(piece) for piece, _ in ids) + len(middle)
        if room <= 0:
            return None
        ids[at] = middle[: room - room // 2] + middle[len(middle) - room // 2 :], False
        return ids

    def _ids(self, pieces: list[Piece]) -> list[tuple[list[int], bool]]:
        return [(self._tokenize(text) if text else [], is_label) for text, is_label in pieces]

    @staticmethod
    def _joined(pieces: list[tuple[list[int], bool]]) -> tuple[list[int], list[int]]:
        """The ids of pieces, and where labels start and stop among them."""
        joined: list[int] = []
        learned: list[int] = []
        for ids, is_label in pieces:
            if is_label and ids:
                learned += [len(joined), len(joined) + len(ids)]
            joined += ids
        return joined, learned
