"""Rows of a file, folder or hub data set, each with its place, which errors name."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from lrsa_lightning.data.data_file import SUFFIXES, DataFile, is_data, kind_of
from lrsa_lightning.data.hub_rows import hub_rows
from lrsa_lightning.data.tables import arrow_rows, csv_rows, parquet_rows
from lrsa_lightning.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ARROW = {".parquet": parquet_rows, ".arrow": arrow_rows}

PlacedRow = tuple[str, int, Any]


def rows_of(file: str | DataFile, skipped: list[str] | None = None) -> Iterator[PlacedRow]:
    """Yields place, number from 1, and content of each row.

    Args:
        file: a file of the kinds in `SUFFIXES`, also gzipped, a folder of them, or a hub data set.
        skipped: takes the reason for each row that cannot be read by itself; None raises it.

    Raises:
        InputError: the file does not exist, cannot be read, is empty or of another kind, the hub cannot be reached, or
            a row is malformed; names the file.
    """
    given = DataFile.of(file)
    with _named(Path(given.path)):
        files = given.files()
    for each in files:
        rows = 0
        for placed in islice(_placed_rows(each, skipped), each.rows):
            rows += 1
            yield placed
        if not rows and not skipped:
            raise InputError(
                f"data file {each.path} is empty: it has no rows. Give a file with samples, or leave it out"
            )


def _placed_rows(file: DataFile, skipped: list[str] | None) -> Iterator[PlacedRow]:
    path = Path(file.path)
    kind = kind_of(path)
    if not file.is_local:
        if is_data(path) or not _HUB_ID.fullmatch(file.path):
            named = file.path or repr(file.path)
            raise InputError(f"data file {named} does not exist: give a file, a folder or a hub id (owner/name)")
        return _numbered(hub_rows(file), file.path, "row")
    if kind not in SUFFIXES:
        raise InputError(
            f"data file {path}: expected {', '.join(SUFFIXES)} or one of them with .gz; plain text is its column text"
        )
    if kind in _ARROW:
        return _numbered(_columns(path, _ARROW[kind]), path, "row")
    if kind in _DELIMITERS:
        return _table(path, _DELIMITERS[kind], skipped)
    first = next(filter(None, map(bytes.lstrip, _lines(path))), b"")
    return _numbered(_array(path), path, "item") if first.startswith(b"[") else _json_lines(path, skipped)


def _numbered(rows: Iterable[Any], file: str | Path, unit: str) -> Iterator[PlacedRow]:
    for number, row in enumerate(rows, start=1):
        yield f"{file}, {unit} {number}", number, row


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file in errors of reading it."""
    try:
        yield
    except EOFError:
        raise InputError(f"{path} is cut short: its gzip data has no end. Copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is no gzip file, or a corrupt one ({error}): rename it without .gz, or download it again"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def _columns(path: Path, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    import pyarrow

    with _named(path), _opened(path) as content:
        seekable = io.BytesIO(content.read()) if path.suffix == ".gz" else content
        try:
            yield from read(seekable)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk fails, not the format
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            kind = {".parquet": "a parquet", ".arrow": "an arrow"}[kind_of(path)]
            raise InputError(
                f"{path}: not {kind} file, or a corrupt one ({reason}): make or download it again"
            ) from None


def _table(path: Path, delimiter: str, skipped: list[str] | None) -> Iterator[PlacedRow]:
    def malformed(line: int, reason: str) -> None:
        if skipped is None:
            raise InputError(f"{path}, line {line}: {reason}")
        skipped.append(f"{path}, line {line}: {reason}")

    with _named(path), _opened(path) as content:
        try:
            for line, row in csv_rows(content, delimiter, malformed):
                yield f"{path}, line {line}", line, row
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{path}, {error}") from None


def _opened(path: Path):
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _json_lines(path: Path, skipped: list[str] | None) -> Iterator[PlacedRow]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = _json(line)
            except ValueError as error:
                if skipped is None:
                    raise InputError(f"{where}: {error}") from None
                skipped.append(f"{where}: {error}")
            else:
                yield where, number, row


def _lines(path: Path) -> Iterator[bytes]:
    """The file's lines, without the byte order mark that some editors write."""
    with _named(path), _opened(path) as content:
        for number, line in enumerate(content):
            yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _array(path: Path) -> list[Any]:
    with _named(path), _opened(path) as content:
        text = content.read().removeprefix(codecs.BOM_UTF8)
    try:
        return _json(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _json(text: bytes) -> Any:
    """Raises ValueError, which says what is wrong and what is expected."""
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column" if b"\n" in text.strip() else "column"
        raise ValueError(
            f"not valid JSON ({error.msg} at {place} {error.colno}); one object a line, or one array of all"
        ) from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply); one object a line, or one array of all") from None
