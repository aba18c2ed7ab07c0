"""Rows of tables: CSV, TSV, Parquet and Arrow files."""

import csv
import io
from collections.abc import Callable, Iterator
from typing import IO, Any

# Python's own limit of a cell is 128 KiB, less than a long document.
_LONGEST_CELL = 2**31 - 1
_ROWS_AT_A_TIME = 64


def csv_rows(content: IO[bytes], delimiter: str, malformed: Callable[[int, str], None]) -> Iterator[tuple[int, Any]]:
    """Yields each row of a file with a header, as a mapping of texts, with its first line.

    Args:
        content: the file's bytes.
        delimiter: between cells.
        malformed: called with a line and what is wrong with its row; the row is left out.

    Raises:
        ValueError: the file cannot be read further.
    """
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = _checked_header(cells, delimiter)
            elif len(cells) != len(header):
                malformed(
                    first, f"{len(cells)} cells, but the header has {len(header)}: quote cells that hold {delimiter!r}"
                )
            else:
                yield first, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {line}: not valid CSV ({error}): quote cells that hold quotes or line ends") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"line {line} or after: not UTF-8 ({error.reason}): save the file as UTF-8") from None


def _checked_header(names: list[str], delimiter: str) -> list[str]:
    if len(names) == 1 and (other := next((mark for mark in ",;\t" if mark != delimiter and mark in names[0]), None)):
        way_out = {",": "name it .csv", "\t": "name it .tsv", ";": "save it with commas"}[other]
        raise ValueError(f"line 1: the cells are separated by {other!r}, not by {delimiter!r}: {way_out}")
    if len({*names}) < len(names) or "" in names:
        raise ValueError(f"line 1: expected a header with a name for each column, each once, not {', '.join(names)}")
    return names


def parquet_rows(content: IO[bytes]) -> Iterator[Any]:
    """The rows of a Parquet file. Raises pyarrow's errors."""
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(content).iter_batches(batch_size=_ROWS_AT_A_TIME):
        yield from batch.to_pylist()


def arrow_rows(content: IO[bytes]) -> Iterator[Any]:
    """The rows of an Arrow file: a stream, as `datasets` saves it, or Arrow's file format. Raises pyarrow's errors."""
    import pyarrow.ipc

    try:
        reader = pyarrow.ipc.open_file(content)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    except pyarrow.ArrowInvalid:
        content.seek(0)
        batches = pyarrow.ipc.open_stream(content)
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
            yield from batch.slice(start, _ROWS_AT_A_TIME).to_pylist()
