"""Public data-set formats. The columns of a file's first row decide on the format."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from lrsa_lightning.data.parts import text_of, turns_of
from lrsa_lightning.data.sample import Kind, texts_of

Row: TypeAlias = Mapping[str, Any]
# Document, question, answer and, of a chat, its earlier turns.
Texts: TypeAlias = tuple[str, str, str] | tuple[str, str, str, tuple[tuple[str, str], ...]]

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_KNOWN = ("system", "user", "assistant")
# Columns of data sets for other kinds of training, what they hold, and what to give instead.
_OTHERS = {
    ("chosen", "rejected"): (
        "the row compares two answers (chosen, rejected), which only preference training uses: give rows with one "
        "answer, such as the chosen one in the column answer beside document and question"
    ),
    ("prompt", "completion", "label"): (
        "the row rates an answer (label), which only preference training uses: give the good answers, without label"
    ),
    ("prompt", "completions"): (
        "the row has several or partial answers (completions), which only preference and step-wise training use: give "
        "rows with one answer"
    ),
    (
        "input_ids",
    ): "the row is tokenised (input_ids): give its text, which is tokenised here with the model's tokenizer",
}
_TURN = re.compile(r"<(user|assistant)(?:[ _]?\d+)?>\s*[:：]?\s*", re.IGNORECASE)


class Format(NamedTuple):
    """How a data set writes its samples.

    Attributes:
        columns: columns that tell the format.
        expected: a row, for error messages.
        parse: row -> the texts of its sample; raises ValueError, which says what is wrong, for another row.
        kind: of its samples.
        optional: further columns that it reads.
    """

    columns: tuple[str, ...]
    expected: str
    parse: Callable[[Row], Texts]
    kind: Kind = "question"
    optional: tuple[str, ...] = ()


def _longalign(row: Row) -> Texts:
    """THUDM/LongAlign-10k (now zai-org/LongAlign-10k), and any chat in OpenAI's `messages`."""
    return _last_exchange(turns_of(row, "messages", "role", "content"), "messages")


def _sharegpt(row: Row) -> Texts:
    """ShareGPT's `conversations`."""
    turns = turns_of(row, "conversations", "from", "value")
    return _last_exchange([(_ROLES.get(role, role), value) for role, value in turns], "conversations")


def _longalpaca(row: Row) -> Texts:
    """Yukang/LongAlpaca-12k: an instruction that holds the document. In Alpaca's format `input` is the document."""
    instruction, given = text_of(row, "instruction"), text_of(row, "input", needed=False)
    if given.strip():
        return given.rstrip() + "\n\n", instruction, text_of(row, "output", "answer")
    # LongAlpaca writes the question after the paper or book, on separate lines.
    text, parting, question = instruction.strip().rpartition("\n")
    return text + parting, question, text_of(row, "output", "answer")


def _anti_haystack(row: Row) -> Texts:
    """wenbopan/anti-haystack, and any file of documents with questions (`data.fields` gives other column names)."""
    document, question, answer = (text_of(row, part) for part in ("document", "question", "answer"))
    return document.rstrip() + "\n\n", question.strip(), answer


def _refgpt(row: Row) -> Texts:
    """wenbopan/RefGPT-Fact-v2-8x. The dialogue is one text, and belongs to the document up to its last question."""
    _, *pieces = _TURN.split(text_of(row, "dialogue"))
    turns = [(role.lower(), text.strip()) for role, text in zip(pieces[::2], pieces[1::2], strict=True)]
    if turns and (reference := text_of(row, "reference", needed=False).strip()):
        turns[0] = turns[0][0], f"{reference}\n\n{turns[0][1]}"
    return _last_exchange(turns, "dialogue")


def _text(row: Row) -> Texts:
    """A plain text to go on training with, such as those of web crawls."""
    text = text_of(row, "text")
    if not text.strip():
        raise ValueError("the text is empty")
    return text, "", ""


def _last_exchange(turns: Sequence[tuple[str, str]], column: str) -> Texts:
    """Document, question, answer and earlier turns of a chat; the answer is the assistant's last turn.

    In LongAlign, the last user's turn holds a long document, and the question as its last paragraph. Earlier turns
    come before it, in order, as part of the document.

    Raises:
        ValueError: the last two turns are not a user's and an assistant's, or a role is another one.
    """
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"]:
        found = ", ".join(map(str, roles[-2:])) or "none"
        raise ValueError(
            f"expected user, assistant as the roles of the last two of {len(roles)} turns, not {found}, in {column}"
        )
    if other := [(place, role) for place, role in enumerate(roles) if role not in _KNOWN]:
        raise ValueError(
            f"{column}[{other[0][0]}]: expected turns of the roles {', '.join(_KNOWN)}, not {other[0][1]}: tool calls "
            "cannot be used"
        )
    *earlier, (_, user), (_, answer) = turns
    text, parting, question = user.rpartition("\n\n")
    return texts_of(earlier) + text + parting, question, answer, tuple(earlier)


FORMATS = {
    "longalign": Format(
        ("messages",),
        '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}',
        _longalign,
        "chat",
    ),
    "sharegpt": Format(
        ("conversations",),
        '{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}',
        _sharegpt,
        "chat",
    ),
    "longalpaca": Format(("instruction", "output"), '{"instruction": ..., "output": ...}', _longalpaca),
    "anti_haystack": Format(
        ("document", "question", "answer"),
        '{"document": ..., "question": ..., "answer": ...}',
        _anti_haystack,
    ),
    "refgpt": Format(
        ("dialogue",),
        '{"reference": ..., "dialogue": "<user 1>: ... <assistant 1>: ..."}',
        _refgpt,
        "chat",
        ("reference",),
    ),
    "text": Format(("text",), '{"text": ...}', _text, "text"),
}


def refusal_of(row: Row) -> str | None:
    """Why a row of another kind of training cannot be used; None where it is none."""
    return next((reason for columns, reason in _OTHERS.items() if {*columns} <= {*row}), None)
