"""Small text files, written atomically."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_BLOCK = 4096


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, syncs it and moves it: a reader finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def append_text(path: Path, text: str) -> None:
    """Appends complete lines, over a last line without its end; if that fails, the earlier lines stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
        end = _end_of_lines(file)
        if file.seek(0, os.SEEK_END) > end:
            file.truncate(end)
        data = text.encode()
        try:
            file.seek(end)
            while data:  # a disk that fills up writes a part, and fails at the next call
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def _end_of_lines(file: BinaryIO) -> int:
    """The offset at which the last complete line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0
