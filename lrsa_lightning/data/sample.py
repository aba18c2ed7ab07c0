"""A sample of any data set: one question about one long text, or a plain text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, TypeAlias

# A chat's turns have roles. A question is about a document. A plain text is learned as it is.
Kind: TypeAlias = Literal["chat", "question", "text"]


def texts_of(turns: Sequence[tuple[str, str]]) -> str:
    """The contents of turns, in order, as paragraphs of a document."""
    return "".join(content.strip() + "\n\n" for _, content in turns)


@dataclass(frozen=True)
class Sample:
    """One question about one long text, or a plain text.

    Attributes:
        id: unique within the training set: name of its file and number of its row.
        document: the text, with the blank line that separates it from the question; may be empty. It begins with the
            texts of a chat's earlier turns.
        question: the user's question, the end of the prompt.
        answer: the text of the label tokens.
        turns: role and content of a chat's earlier turns: system, user or assistant.
        kind: a plain text is a document without question and answer.
        template: that of the sample's file; None for the one of all files.
    """

    id: str
    document: str
    question: str
    answer: str
    turns: tuple[tuple[str, str], ...] = ()
    kind: Kind = "question"
    template: Literal["auto", "base", "chatml"] | None = None

    @property
    def prompt(self) -> str:
        """Document, then question: the user's turn where roles are not kept."""
        return self.document + self.question

    @property
    def own_document(self) -> str:
        """What the last user's turn has of the document."""
        return self.document[len(texts_of(self.turns)) :]

    @cached_property
    def language(self) -> str:
        """zh if more than a fifth of the first thousand letters are Chinese characters, else other."""
        letters = list(islice(filter(str.isalpha, self.document or self.question), 1000))
        chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
        return "zh" if chinese > len(letters) / 5 else "other"

    def paragraphs(self) -> list[str]:
        """The document's paragraphs, separated by blank lines; its lines where it has no blank line."""
        parts = [part for part in self.document.split("\n\n") if part.strip()]
        return parts if len(parts) > 1 else [line for line in self.document.splitlines() if line.strip()]
