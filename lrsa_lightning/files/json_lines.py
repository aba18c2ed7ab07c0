"""Reads files with one JSON object per line; an error names its line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError


def read_lines(path: Path, cut_short: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers, from 1.

    With ``cut_short`` it skips a last line without its end, which a kill can leave.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # str.splitlines would also split at U+2028
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if cut_short:
        lines.pop()
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"{path}, line {number}: expected a JSON object ({reason})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, not {type(row).__name__}")
        yield number, row
