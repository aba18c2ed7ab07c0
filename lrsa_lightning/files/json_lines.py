"""Reads files with one JSON object per line; an error names its line."""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError

_PLAIN = {".gz": gzip.decompress, ".xz": lzma.decompress}


def read_lines(path: Path, cut_short: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, which may end in .gz or .xz, with their line numbers, from 1.

    With ``cut_short`` it skips a last line without its end, which a kill can leave.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    lines = _content(path).split(b"\n")  # str.splitlines would also split at U+2028
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


def _content(path: Path) -> bytes:
    try:
        return _PLAIN.get(path.suffix, bytes)(path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
