"""Public data-set formats. Each module has COLUMNS, EXPECTED and parse(row); a file's first row tells its format."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Literal, TypeAlias

from lrsa_lightning.data.files import rows_of
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sources import anti_haystack, longalign, longalpaca, refgpt, sharegpt
from lrsa_lightning.errors import InputError

FORMATS: dict[str, ModuleType] = {
    "longalign": longalign,
    "sharegpt": sharegpt,
    "longalpaca": longalpaca,
    "anti_haystack": anti_haystack,
    "refgpt": refgpt,
}
SourceName: TypeAlias = Literal["auto", "longalign", "sharegpt", "longalpaca", "anti_haystack", "refgpt"]
Row: TypeAlias = Mapping[str, Any]


def read_samples(
    file: str, source: SourceName = "auto", fields: Mapping[str, str] | None = None, skipped: list[str] | None = None
) -> Iterator[Sample]:
    """The samples of one file or hub data set, in its order.

    Args:
        file: a .json, .jsonl or .parquet file (.gz too), or a hub id.
        source: its format; auto goes by the columns of the first row.
        fields: names of the columns document, question and answer, for a format of one's own.
        skipped: takes the reason for each malformed row; None raises it.

    Raises:
        InputError: the file is missing or unreadable, its format unknown, or a row malformed; names file and row.
    """
    parser = None
    for where, number, row in rows_of(file, skipped):
        try:
            row = _renamed(row, fields)
            parser = parser or (_detect(row) if source == "auto" else FORMATS[source])
            yield _sample(parser, row, f"{file.rsplit('/', 1)[-1]}:{number}")
        except ValueError as error:
            if skipped is None:
                raise InputError(f"{where}: {error}") from None
            skipped.append(f"{where}: {error}")
    if skipped and parser is None:
        raise InputError(f"no row of {file} could be read; the first: {skipped[0]}")


def _renamed(row: Row, fields: Mapping[str, str] | None) -> Row:
    if not isinstance(row, Mapping):
        raise ValueError("expected an object, with a field for each part of the sample")
    if not fields:
        return row
    if missing := [column for column in fields.values() if column not in row]:
        raise ValueError(f"data.fields names the column {missing[0]!r}, the row has {', '.join(map(repr, row))}")
    return {part: row[column] for part, column in fields.items()}


def _detect(row: Row) -> ModuleType:
    for parser in FORMATS.values():
        if set(parser.COLUMNS) <= set(row):
            return parser
    known = "; ".join(parser.EXPECTED for parser in FORMATS.values())
    raise ValueError(
        f"no known format has the columns {', '.join(map(repr, row))}. Expected one of: {known}. For columns of "
        'other names set data.fields, such as {"document": "context", "question": "query", "answer": "response"}'
    )


def _sample(parser: ModuleType, row: Row, sample_id: str) -> Sample:
    try:
        document, question, answer = parser.parse(row)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"expected {parser.EXPECTED}") from None
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise ValueError(f"the {name} is empty; expected {parser.EXPECTED}")
    return Sample(sample_id, document, question, answer)
