"""Rows of a local file or of a hub data set, each with its place, so that an error can name it."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading

_SUFFIXES = (".json", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

PlacedRow = tuple[str, int, Any]


def rows_of(file: str, skipped: list[str] | None = None) -> Iterator[PlacedRow]:
    """Where it is, its number from 1, and the row, for each row of a file or hub data set.

    Args:
        file: a .json, .jsonl or .parquet file, also gzipped, or a hub id.
        skipped: takes the reason for each line that is not JSON; None raises it.

    Raises:
        InputError: the file does not exist or is of another kind, the hub cannot be reached, a line is malformed.
    """
    path = Path(file)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.is_file():
        if suffix in _SUFFIXES or not _HUB_ID.fullmatch(file):
            raise InputError(f"data file {file} does not exist. Set data.train_files to a file or to a hub id.")
        return _hub_rows(file)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix not in _SUFFIXES:
        raise InputError(f"data file {file}: expected {', '.join(_SUFFIXES)} or one of them with .gz")
    return _json_rows(path, skipped)


def files_of(file: str) -> Path | None:
    """The local file behind a name; None for a hub id."""
    return Path(file) if Path(file).is_file() else None


def _hub_rows(name: str) -> Iterator[PlacedRow]:
    import datasets

    before_loading(name)
    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # datasets raises whatever its network and file layers raise
        raise InputError(
            f"hub data set {name} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            f"Without access to the hub, run `hf download --repo-type dataset {name} --local-dir DIR` where there is, "
            "and name the .json, .jsonl or .parquet file in DIR in data.train_files. If a file was meant: it does not "
            "exist."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", number, row


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", number, row
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None


def _json_rows(path: Path, skipped: list[str] | None) -> Iterator[PlacedRow]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        first = lines.read(1)
        while first.isspace():
            first = lines.read(1)
        lines.seek(0)
        if first == b"[":
            yield from _array_rows(path, lines.read())
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    yield where, number, _json(line)
                except ValueError as error:
                    if skipped is None:
                        raise InputError(f"{where}: {error}") from None
                    skipped.append(f"{where}: {error}")


def _array_rows(path: Path, text: bytes) -> Iterator[PlacedRow]:
    try:
        rows = _json(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", number, row


def _json(text: bytes) -> Any:
    """Raises ValueError saying what is wrong and what was expected."""
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column" if b"\n" in text.strip() else "column"
        raise ValueError(f"not valid JSON ({error.msg} at {place} {error.colno}); one object a line") from None
