"""The samples of a file: its format, the user's names of its columns, and what is wrong with a row."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from lrsa_lightning.data.data_file import DataFile, FormatName
from lrsa_lightning.data.files import rows_of
from lrsa_lightning.data.formats import FORMATS, Format, Row, refusal_of
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.errors import InputError, listed

SourceName: TypeAlias = FormatName | Literal["demo"]
_WAY_OUT = "mend the row, or leave out such rows with data.bad_rows skip"


class _Layout(NamedTuple):
    """How to read the rows of a file: its format, and the user's names of its columns."""

    form: Format
    fields: Mapping[str, str]


def read_samples(
    file: str | DataFile,
    source: SourceName = "auto",
    fields: Mapping[str, str] | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Sample]:
    """The samples of one file, folder or hub data set, in its order.

    Args:
        file: what `rows_of` reads. Its own format and names come before the next arguments.
        source: the format; auto finds it by the columns of the first row.
        fields: the user's names of columns; applied where the first row has these columns.
        skipped: takes the reason for each malformed row; None raises it.

    Raises:
        InputError: the file is missing or unreadable, its format unknown, or a row malformed; names file and row.
    """
    given = DataFile.of(file)
    layout: _Layout | None = None
    read = 0
    for where, number, row in rows_of(given, skipped):
        try:
            if not isinstance(row, Mapping):
                raise ValueError("expected an object, with a field for each part of the sample")
            layout = layout or _layout(row, given, source, fields or {})
            name = Path(where.rpartition(", ")[0]).name
            sample = _sample(layout, row, f"{name}:{number}", given)
        except ValueError as error:
            if skipped is None:
                way_out = f"; {_WAY_OUT}" if layout is not None else ""
                raise InputError(f"{where}: {error}{way_out}") from None
            skipped.append(f"{where}: {error}")
        else:
            read += 1
            yield sample
    if skipped and not read:
        raise InputError(f"no row of {given.path} could be read; the first: {skipped[0]}")


def has_fields(file: str | DataFile, fields: Mapping[str, str]) -> bool:
    """Whether the first row of a file has the columns that `data.fields` names."""
    rows = (row for _, _, row in rows_of(file, skipped=[]) if isinstance(row, Mapping))
    return set(fields.values()) <= set(next(rows, {}))


def _layout(row: Row, file: DataFile, source: SourceName, fields: Mapping[str, str]) -> _Layout:
    if file.fields is not None:
        _check_columns(row, file.fields, "fields")
    source, fields = file.source or source, fields if file.fields is None else file.fields
    missing = [column for column in fields.values() if column not in row]
    fields = {} if missing else fields
    columns = {*row, *fields}
    if source == "auto" and not fields and (reason := refusal_of(row)):
        raise ValueError(f"{reason}. To read other columns of the row, name their format in data.source")
    formats = [*FORMATS.values()] if source == "auto" else [FORMATS[source]]
    # A format that reads all renamed columns: others would not see the user's names.
    fitting = (form for form in formats if {*form.columns} <= columns and {*fields} <= {*form.columns, *form.optional})
    form = next(fitting, formats[0] if source != "auto" and not fields else None)
    if form is not None:
        return _Layout(form, fields)
    if missing:
        _check_columns(row, file.fields or {missing[0]: missing[0]}, "data.fields")
    raise ValueError(_unknown([*(fields or row)]))


def _unknown(columns: list[str]) -> str:
    known = "; ".join(form.expected for form in FORMATS.values())
    return (
        f"no known format has the columns {listed([*map(repr, columns)], 8)}. Expected one of: {known}. For columns of "
        'other names set data.fields, such as {"document": "context", "question": "query", "answer": "response"}'
    )


def _check_columns(row: Row, fields: Mapping[str, str], option: str = "data.fields") -> None:
    if missing := [column for column in fields.values() if column not in row]:
        raise ValueError(f"{option} names the column {missing[0]!r}, the row has {', '.join(map(repr, row))}")


def _sample(layout: _Layout, row: Row, sample_id: str, file: DataFile) -> Sample:
    form, fields = layout
    _check_columns(row, fields)
    try:
        texts = form.parse({**row, **{part: row[column] for part, column in fields.items()}} if fields else row)
        names = ("text",) if form.kind == "text" else ("document", "question", "answer")
        for name, text in zip(names, texts, strict=False):
            _check_text(name, text)
    except ValueError as error:
        raise ValueError(f"{error}; expected {form.expected}") from None
    return Sample(sample_id, *texts, kind=form.kind, template=file.template)


def _check_text(name: str, text: Any) -> None:
    """Raises ValueError unless it is text that can be tokenised, and not blank where it must not be."""
    if name in ("question", "answer") and not text.strip():
        raise ValueError(f"the {name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} has half a character, \\u{ord(text[error.start]):x}, which is no text") from None
