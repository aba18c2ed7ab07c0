"""The class of each token of a text: document, question, needle, punctuation or answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

CLASSES = ("document", "question", "needle", "punctuation", "answer")
DOCUMENT, QUESTION, NEEDLE, PUNCTUATION, ANSWER = range(len(CLASSES))

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|(?=\n)|$")
_STARTS = ("\n", ". ", "! ", "? ")


@dataclass(frozen=True)
class MarkedText:
    """A text as a model reads it, with its answer.

    Attributes:
        id: names its file and row.
        ids: token ids.
        classes: index in `CLASSES` of each token.
        num_answer: tokens of the answer, which are the last ones.
    """

    id: str
    ids: Sequence[int]
    classes: Sequence[int]
    num_answer: int


class Punctuation:
    """Whether a token is punctuation: it has neither a letter nor a digit. White space counts as punctuation."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if token not in self._known:
            text = self._tokenizer.decode([token])
            # A part of a character has no text of its own.
            self._known[token] = "\ufffd" not in text and not any(map(str.isalnum, text))
        return self._known[token]

    def mark(self, ids: Sequence[int], classes: Sequence[int]) -> list[int]:
        """The classes, with the punctuation of the document as a class of its own."""
        pairs = zip(ids, classes, strict=True)
        return [PUNCTUATION if own == DOCUMENT and self(token) else own for token, own in pairs]


def needle_spans(text: str, outputs: Sequence[str]) -> list[tuple[int, int]]:
    """The sentences, or lines, that hold one of the outputs as a word: first character and the one after the last."""
    spans = []
    for output in outputs:
        for found in re.finditer(rf"(?<!\w){re.escape(output)}(?!\w)", text):
            before = [(text.rfind(mark, 0, found.start()), len(mark)) for mark in _STARTS]
            start = max([0, *(place + length for place, length in before if place >= 0)])
            spans.append((start, _SENTENCE_END.search(text, found.end()).end()))
    return spans


def classes_of_spans(
    offsets: Sequence[tuple[int, int]], question_start: int, needles: Sequence[tuple[int, int]]
) -> list[int]:
    """Classes of tokens by the characters that they span.

    A token is of the needle if one of its characters is, else of the question if its last character is.

    Args:
        offsets: first character of each token, and the one after its last.
        question_start: the character at which the question begins.
        needles: spans of characters.
    """
    is_needle = bytearray(max([0, *(end for _, end in [*offsets, *needles])]))
    for start, end in needles:
        is_needle[start:end] = b"\1" * (end - start)
    return [
        NEEDLE if 1 in is_needle[start:end] else QUESTION if end > question_start else DOCUMENT
        for start, end in offsets
    ]
