"""The samples of a file: its format, the user's names of its columns, and what is wrong with a row."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from lrsa_lightning.data.files import rows_of
from lrsa_lightning.data.formats import FORMATS, PREFERENCES, Format, Row
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError

SourceName: TypeAlias = Literal["auto", "longalign", "sharegpt", "longalpaca", "anti_haystack", "refgpt", "demo"]
# How to read the rows of a file: its format, and the user's names of its columns.
_Layout: TypeAlias = tuple[Format, Mapping[str, str]]


def read_samples(
    file: str, source: SourceName = "auto", fields: Mapping[str, str] | None = None, skipped: list[str] | None = None
) -> Iterator[Sample]:
    """The samples of one file or hub data set, in its order.

    Args:
        file: a .json, .jsonl or .parquet file (.gz too), or a hub id.
        source: its format; auto finds it by the columns of the first row.
        fields: the user's names of the columns document, question and answer; applied where the first row has these
            columns.
        skipped: takes the reason for each malformed row; None raises it.

    Raises:
        InputError: the file is missing or unreadable, its format unknown, or a row malformed; names file and row.
    """
    layout: _Layout | None = None
    read = 0
    for where, number, row in rows_of(file, skipped):
        try:
            if not isinstance(row, Mapping):
                raise ValueError("expected an object, with a field for each part of the sample")
            layout = layout or _layout(row, source, fields or {})
            sample = _sample(layout, row, f"{file.rsplit('/', 1)[-1]}:{number}")
        except ValueError as error:
            if skipped is None:
                raise InputError(f"{where}: {error}") from None
            skipped.append(f"{where}: {error}")
        else:
            read += 1
            yield sample
    if skipped and not read:
        raise InputError(f"no row of {file} could be read; the first: {skipped[0]}")


def has_fields(file: str, fields: Mapping[str, str]) -> bool:
    """Whether the first row of a file has the columns that `data.fields` names."""
    rows = (row for _, _, row in rows_of(file, skipped=[]) if isinstance(row, Mapping))
    return set(fields.values()) <= set(next(rows, {}))


def _layout(row: Row, source: SourceName, fields: Mapping[str, str]) -> _Layout:
    formats = [*FORMATS.values()] if source == "auto" else [FORMATS[source]]
    missing = [column for column in fields.values() if column not in row]
    columns = list(row if missing or not fields else fields)
    fitting = (form for form in formats if set(form.columns) <= set(columns))
    form = next(fitting, formats[0] if source != "auto" and not missing else None)
    if form is not None:
        return form, {} if missing else fields
    _check_columns(row, fields)
    if set(PREFERENCES) <= set(row):
        raise ValueError(
            "the row compares two answers (chosen, rejected), which only preference training uses: give rows with one "
            "answer, such as the chosen one in the column answer beside document and question"
        )
    known = "; ".join(form.expected for form in FORMATS.values())
    raise ValueError(
        f"no known format has the columns {', '.join(map(repr, columns))}. Expected one of: {known}. For columns of "
        'other names set data.fields, such as {"document": "context", "question": "query", "answer": "response"}'
    )


def _check_columns(row: Row, fields: Mapping[str, str]) -> None:
    if missing := [column for column in fields.values() if column not in row]:
        raise ValueError(f"data.fields names the column {missing[0]!r}, the row has {', '.join(map(repr, row))}")


def _sample(layout: _Layout, row: Row, sample_id: str) -> Sample:
    form, fields = layout
    _check_columns(row, fields)
    try:
        texts = form.parse({part: row[column] for part, column in fields.items()} if fields else row)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"expected {form.expected}") from None
    for name, text in zip(("document", "question", "answer"), texts[:3], strict=True):
        _check_text(name, text, form.expected)
    return Sample(sample_id, *texts, kind=form.kind)


def _check_text(name: str, text: Any, expected: str) -> None:
    """Raises ValueError unless it is text that can be tokenised, and not blank where it must not be."""
    if not isinstance(text, str):
        raise ValueError(f"the {name} is {type(text).__name__}, not text; expected {expected}")
    if name != "document" and not text.strip():
        raise ValueError(f"the {name} is empty; expected {expected}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} has half a character, \\u{ord(text[error.start]):x}, which is no text") from None
