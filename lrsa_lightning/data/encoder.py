"""Samples as token ids of at most a row, extended up to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.chat_template import Piece
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import Template, TemplateOfEach
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


class _Texts(NamedTuple):
    """The texts of a sample under its template.

    Attributes:
        opening: what comes before the last user's turn, in pieces.
        document: the document in that turn.
        question: the rest of the turn, up to the answer.
        answer: the last answer, with what ends it.
        no_answer: the same without the answer's own text.
        contents: of earlier turns, which may hold the document; empty where they are not in their roles.
    """

    opening: list[Piece]
    document: str
    question: str
    answer: str
    no_answer: str
    contents: Sequence[str] = ()


class NothingToLearn(InputError):
    """A tokenizer has no tokens for a sample's answer or the text before it, or its chat template not for its turns."""


class SampleEncoder:
    """Turns samples into token ids of at most ``seq_len``, extended up to it."""

    def __init__(
        self,
        tokenizer,
        template: Template | TemplateOfEach,
        seq_len: int,
        extender: Extender | None,
        too_long: TooLong = "drop",
        learn: Learn = "all",
    ):
        """
        Args:
            tokenizer: a transformers tokenizer.
            template: texts around prompt and answer, or those of each sample.
            seq_len: tokens of a training row.
            extender: fills up short samples; None leaves them short.
            too_long: drop leaves out samples longer than a row; shorten cuts the middle of their document.
            learn: all answers of a chat whose template keeps the roles, or the last one.
        """
        self._tokenize = LongTokenizer(tokenizer)
        self._template = template
        self._seq_len = seq_len
        self._extender = extender
        self._too_long = too_long
        self._learns_all = learn == "all"

    def __call__(self, sample: Sample) -> TokenizedSample | None:
        """The sample's token ids; None if it is longer than a row and is dropped, or cannot be shortened enough.

        Raises:
            NothingToLearn: the tokenizer has no tokens for the answer or the prompt; names file and row.
        """
        if sample.kind == "text":
            first, *more = self._rows_of_text(sample)
            return None if more else first
        tokenize, texts = self._tokenize, self._texts(sample)
        answer = tokenize(texts.answer)
        own = tokenize(texts.document + texts.question)
        before, learned = self._joined(self._ids(texts.opening))
        if not own or not answer or answer == tokenize(texts.no_answer):
            raise self._no_tokens(sample, "answer" if own else "text")
        # The last id is a label only: a row of seq_len inputs holds one id more.
        budget = self._seq_len + 1 - len(before) - len(own) - len(answer)
        if budget >= 0:
            sections = self._extender.sections(sample, budget, tokenize) if self._extender else []
            return TokenizedSample(before + sections + own + answer, len(answer), learned=learned)
        if self._too_long == "drop":
            return None
        shorter = self._shorten(texts, len(before) + len(own) + budget)
        if shorter is None:
            return None
        ids, learned = self._joined(shorter)
        return TokenizedSample(ids + answer, len(answer), shortened=True, learned=learned)

    def rows(self, sample: Sample) -> list[TokenizedSample]:
        """The rows of a sample: one or none, but for a plain text as many as it fills.

        Raises:
            NothingToLearn: as for a call.
        """
        if sample.kind == "text":
            return self._rows_of_text(sample)
        row = self(sample)
        return [] if row is None else [row]

    def _rows_of_text(self, sample: Sample) -> list[TokenizedSample]:
        """A plain text and its end token, cut into rows. Each id but the first is a label once.

        A row begins with the id that the row before it ends with: there the id is a label, here an input.
        """
        ids = self._tokenize(sample.document + self._template.of(sample).answer_end)
        if len(ids) < 2:
            raise self._no_tokens(sample, "text")
        starts = range(0, len(ids) - 1, self._seq_len)
        cut = (ids[start : start + self._seq_len + 1] for start in starts)
        return [TokenizedSample(part, len(part) - 1) for part in cut]

    @staticmethod
    def _no_tokens(sample: Sample, part: str) -> NothingToLearn:
        return NothingToLearn(
            f"{sample.id}: the tokenizer has no tokens for the {part} of this row: use one that knows its language, "
            "or set data.bad_rows to skip"
        )

    def _texts(self, sample: Sample) -> _Texts:
        """The sample's texts under its template, whose chat template places the turns.

        Raises:
            NothingToLearn: the chat template does not take the turns.
        """
        template = self._template.of(sample)
        if template.chat is None:
            answer = template.answer_start + sample.answer + template.answer_end
            no_answer = template.answer_start + template.answer_end
            question = sample.question + template.after
            return _Texts([(template.before, False)], sample.document, question, answer, no_answer)
        user = sample.own_document + sample.question
        turns = [*sample.turns, ("user", user), ("assistant", sample.answer)]
        try:
            chat = template.chat(turns, self._learns_all)
        except InputError as error:
            raise NothingToLearn(f"{sample.id}: {error}") from error
        own = (sample.own_document, sample.own_document.lstrip())  # a template may trim the turn
        document = next((text for text in own if chat.user.startswith(text)), "")
        question = chat.user[len(document) :] + chat.after
        no_answer = chat.answer.replace(sample.answer.strip(), "", 1)
        contents = [content.strip() for role, content in sample.turns if role != "assistant"]
        return _Texts(chat.before, document, question, chat.answer, no_answer, contents)

    def _shorten(self, texts: _Texts, length: int) -> list[tuple[list[int], bool]] | None:
        """All before the answer in ``length`` tokens: start and end of the longest text, in equal parts, and the rest.

        The longest text is the document, or one of a chat's earlier turns that holds it.
        """
        pieces = [*texts.opening, (texts.document, False), (texts.question, False)]
        longest, at = max(texts.contents, key=len, default=""), len(texts.opening)
        if len(longest) > len(texts.document):
            at = next(index for index, (text, is_label) in enumerate(pieces) if longest in text and not is_label)
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
