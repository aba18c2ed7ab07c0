"""The texts and turns in a row; what is wrong with them names the column, what it holds and what is expected."""

from collections.abc import Mapping
from typing import Any

from lrsa_lightning.errors import listed


def text_of(row: Mapping[str, Any], column: str, part: str | None = None, needed: bool = True) -> str:
    """The text in a column.

    Args:
        row: of a file.
        column: its name.
        part: what the text is of a sample, if the column has another name.
        needed: whether the text may not be missing; otherwise it is then empty.

    Raises:
        ValueError: there is no text.
    """
    value = row.get(column)
    if value is None and not needed:
        return ""
    if column not in row:
        raise ValueError(f"expected the column {column!r}, but the row has only {listed([*map(repr, row)], 8)}")
    if not isinstance(value, str):
        place = f", in the column {column!r}" if part else ""
        raise ValueError(f"the {part or column} is {type(value).__name__}, not text{place}")
    return value


def turns_of(row: Mapping[str, Any], column: str, role: str, content: str) -> list[tuple[str, str]]:
    """Role and content of each turn of a chat.

    Args:
        row: of a file.
        column: that holds the turns.
        role: key of a turn's role.
        content: key of its text.

    Raises:
        ValueError: there is no list of turns, or a turn lacks a key or text.
    """
    turns = row.get(column)
    if not isinstance(turns, list | tuple):
        found = type(turns).__name__ if column in row else "nothing"
        raise ValueError(f"expected a list of turns in {column}, not {found}")
    return [_turn(turn, f"{column}[{place}]", role, content) for place, turn in enumerate(turns)]


def _turn(turn: Any, place: str, role: str, content: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"expected an object with {role!r} and {content!r} in {place}, not {type(turn).__name__}")
    for key in (role, content):
        if key not in turn:
            raise ValueError(f"expected the key {key!r} in {place}, which has only {listed([*map(repr, turn)], 8)}")
    if not isinstance(turn[content], str):
        found = type(turn[content]).__name__
        raise ValueError(
            f"{place}: expected text as the content of each turn, not {found}: images and calls cannot be used"
        )
    if not isinstance(turn[role], str):
        raise ValueError(f"expected a role in {place}, not {type(turn[role]).__name__}")
    return turn[role], turn[content]
