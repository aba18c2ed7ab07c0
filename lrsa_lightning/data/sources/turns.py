"""Chats as one question about one text."""

from collections.abc import Sequence


def last_exchange(turns: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """Document, question and answer of a chat; the answer is the assistant's last turn.

    The last user's turn holds, as in LongAlign, a long document and the question as its last paragraph. Earlier turns
    come before it, in order, as part of the document.

    Raises:
        TypeError: the last two turns are not a user's and an assistant's.
        ValueError: a turn is not text.
    """
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"] or set(roles) - {"system", "user", "assistant"}:
        raise TypeError(roles)
    if other := [type(content).__name__ for _, content in turns if not isinstance(content, str)]:
        raise ValueError(f"expected text as the content of each turn, not {other[0]}: images and calls cannot be used")
    *earlier, (_, user), (_, answer) = turns
    text, parting, question = user.rpartition("\n\n")
    document = "".join(content.strip() + "\n\n" for _, content in earlier) + text + parting
    return document, question, answer
