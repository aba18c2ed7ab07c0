"""Public data-set formats. The columns of a file's first row decide on the format."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from lrsa_lightning.data.sample import Kind, texts_of

Row: TypeAlias = Mapping[str, Any]
# Document, question, answer and, of a chat, its earlier turns.
Texts: TypeAlias = tuple[str, str, str] | tuple[str, str, str, tuple[tuple[str, str], ...]]

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_KNOWN = ("system", "user", "assistant")
# Columns of data sets that compare two answers.
PREFERENCES = ("chosen", "rejected")
_TURN = re.compile(r"<(user|assistant)(?:[ _]?\d+)?>\s*[:：]?\s*", re.IGNORECASE)


class Format(NamedTuple):
    """How a data set writes its samples.

    Attributes:
        columns: columns that tell the format.
        expected: a row, for error messages.
        parse: row -> the texts of its sample; raises KeyError, TypeError or AttributeError for another row.
        kind: of its samples.
    """

    columns: tuple[str, ...]
    expected: str
    parse: Callable[[Row], Texts]
    kind: Kind = "question"


def _longalign(row: Row) -> Texts:
    """THUDM/LongAlign-10k (now zai-org/LongAlign-10k), and any chat in OpenAI's `messages`."""
    return _last_exchange([(turn["role"], turn["content"]) for turn in row["messages"]])


def _sharegpt(row: Row) -> Texts:
    """ShareGPT's `conversations`."""
    return _last_exchange([(_ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]])


def _longalpaca(row: Row) -> Texts:
    """Yukang/LongAlpaca-12k: an instruction that holds the document. In Alpaca's format `input` is the document."""
    instruction, given = row["instruction"], row.get("input") or ""
    if given.strip():
        return given.rstrip() + "\n\n", instruction, row["output"]
    # LongAlpaca writes the question after the paper or book, on separate lines.
    text, parting, question = instruction.strip().rpartition("\n")
    return text + parting, question, row["output"]


def _anti_haystack(row: Row) -> Texts:
    """wenbopan/anti-haystack, and any file of documents with questions (`data.fields` gives other column names)."""
    return row["document"].rstrip() + "\n\n", row["question"].strip(), row["answer"]


def _refgpt(row: Row) -> Texts:
    """wenbopan/RefGPT-Fact-v2-8x. The dialogue is one text, and belongs to the document up to its last question."""
    _, *pieces = _TURN.split(row["dialogue"])
    turns = [(role.lower(), text.strip()) for role, text in zip(pieces[::2], pieces[1::2], strict=True)]
    if turns and (reference := (row.get("reference") or "").strip()):
        turns[0] = turns[0][0], f"{reference}\n\n{turns[0][1]}"
    return _last_exchange(turns)


def _last_exchange(turns: Sequence[tuple[str, str]]) -> Texts:
    """Document, question, answer and earlier turns of a chat; the answer is the assistant's last turn.

    In LongAlign, the last user's turn holds a long document, and the question as its last paragraph. Earlier turns
    come before it, in order, as part of the document.

    Raises:
        ValueError: the last two turns are not a user's and an assistant's, a role is another one, or a turn is no text.
    """
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"]:
        found = ", ".join(map(str, roles[-2:])) or "none"
        raise ValueError(f"expected user, assistant as the roles of the last two of {len(roles)} turns, not {found}")
    if other := [role for role in roles if role not in _KNOWN]:
        raise ValueError(f"expected turns of the roles {', '.join(_KNOWN)}, not {other[0]}: tool calls cannot be used")
    if other := [type(content).__name__ for _, content in turns if not isinstance(content, str)]:
        raise ValueError(f"expected text as the content of each turn, not {other[0]}: images and calls cannot be used")
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
        ("dialogue",), '{"reference": ..., "dialogue": "<user 1>: ... <assistant 1>: ..."}', _refgpt, "chat"
    ),
}
