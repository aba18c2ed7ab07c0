"""Rows of a local file or of a hub data set, each with its place, which errors name."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading

_SUFFIXES = (".json", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

PlacedRow = tuple[str, int, Any]


def rows_of(file: str, skipped: list[str] | None = None) -> Iterator[PlacedRow]:
    """Yields place, number from 1, and content of each row of a file or hub data set.

    Args:
        file: a .json, .jsonl or .parquet file, also gzipped, or a hub id.
        skipped: takes the reason for each line that is not JSON; None raises it.

    Raises:
        InputError: the file does not exist, cannot be read, is empty or of another kind, the hub cannot be reached, or
            a line is malformed; names the file.
    """
    rows = 0
    for placed in _placed_rows(file, skipped):
        rows += 1
        yield placed
    if not rows and not skipped:
        raise InputError(f"data file {file} is empty: it has no rows. Give a file with samples, or leave it out")


def files_of(file: str) -> Path | None:
    """The local file of a name; None for a hub id."""
    return Path(file) if Path(file).is_file() else None


def _placed_rows(file: str, skipped: list[str] | None) -> Iterator[PlacedRow]:
    path = Path(file)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    with _named(path):
        is_file, is_folder = path.is_file(), path.is_dir()
    if is_folder:
        raise InputError(f"data file {file!r} is a folder: name the {', '.join(_SUFFIXES)} files in it one by one")
    if not is_file:
        if suffix in _SUFFIXES or not _HUB_ID.fullmatch(file):
            raise InputError(f"data file {file} does not exist. Set data.train_files to a file or to a hub id.")
        return _numbered(_hub_rows(file), file, "row")
    if suffix == ".parquet":
        return _numbered(_parquet_rows(path), path, "row")
    if suffix not in _SUFFIXES:
        raise InputError(f"data file {file}: expected {', '.join(_SUFFIXES)} or one of them with .gz")
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


def _hub_rows(name: str) -> Iterable[Any]:
    import datasets

    before_loading(name)
    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # datasets raises whatever its network and file layers raise
        raise InputError(
            f"hub data set {name} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            f"Without access to the hub, run `hf download --repo-type dataset {name} --local-dir DIR` where there is, "
            "and name the .json, .jsonl or .parquet file in DIR in data.train_files. If a file was meant: it does not "
            "exist."
        ) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with _named(path), _opened(path) as content:
        seekable = io.BytesIO(content.read()) if path.suffix == ".gz" else content
        try:
            for batch in pyarrow.parquet.ParquetFile(seekable).iter_batches(batch_size=64):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk fails, not the format
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: not a parquet file, or a corrupt one ({reason})") from None


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
