"""Chats as one question about one text."""

from collections.abc import Sequence


def last_exchange(turns: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """Document, question and answer of a chat: its last answer is learned, all before it is read.

    A user's turn holds, as in LongAlign, a long document and the question as its last paragraph. Earlier turns stand
    in front of it, in order, as part of the document.

    Raises:
        TypeError: there is no user's turn with an assistant's behind it as the last two.
        ValueError: a turn is not text.
    """
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"] or set(roles) - {"system", "user", "assistant"}:
        raise TypeError(roles)
    if other := [type(content).__name__ for _, content in turns if not isinstance(content, str)]:
        raise ValueError(f"expected text as the content of each turn, not {other[0]}: images and calls are not learned")
    *earlier, (_, user), (_, answer) = turns
    text, parting, question = user.rpartition("\n\n")
    document = "".join(content.strip() + "\n\n" for _, content in earlier) + text + parting
    return document, question, answer
