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

    @property
    def text(self) -> str:
        """The longest of the texts that a user or a system prompt gives: it holds the document of a chat."""
        given = [content for role, content in self.turns if role != "assistant"]
        return max([self.own_document, *given], key=len) or self.question

    @cached_property
    def language(self) -> str:
        """zh, ja or ko, by the letters of the text's first thousand; other for other languages."""
        return language_of(self.text)

    def paragraphs(self) -> list[str]:
        """The document's paragraphs, separated by blank lines; its lines where it has no blank line.

        Of a chat they are those of the user's turns.
        """
        given = "".join(f"{content.strip()}\n\n" for role, content in self.turns if role == "user")
        text = given + self.own_document if self.turns else self.document
        parts = [part for part in text.split("\n\n") if part.strip()]
        return parts if len(parts) > 1 else [line for line in text.splitlines() if line.strip()]


def language_of(text: str) -> str:
    """The language of a text, as far as its letters tell.

    A fifth of the first thousand letters decides. Japanese has kana among its Chinese characters.
    """
    letters = [*islice(filter(str.isalpha, text), 1000)]
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in letters)
    hangul = sum("\uac00" <= letter <= "\ud7a3" for letter in letters)
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    if hangul > len(letters) / 5:
        return "ko"
    if kana + chinese > len(letters) / 5:
        return "ja" if kana > (kana + chinese) / 20 else "zh"
    return "other"
