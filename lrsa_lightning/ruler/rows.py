"""A sample as a row: RULER's fields and ours, as files hold them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from lrsa_lightning.errors import InputError

Row: TypeAlias = Mapping[str, Any]


def check_row(row: Row, fields: Mapping[str, type], where: str) -> None:
    """Checks that a row has the fields an evaluation reads, outputs among them.

    Args:
        row: of a file.
        fields: name -> type.
        where: file and line, for the error.

    Raises:
        InputError: a field is missing or has another type, or outputs is no list of texts.
    """
    for name, expected in fields.items():
        if not isinstance(row.get(name), expected):
            raise InputError(f"{where}: {name} is {row.get(name)!r}, expected a {expected.__name__}")
    if not row["outputs"] or not all(isinstance(output, str) for output in row["outputs"]):
        raise InputError(f"{where}: outputs are {row['outputs']!r}, expected a list of texts, one at least")


def digest(row: Row) -> str:
    """16 hexadecimal digits that identify a sample's question and its answers, whatever its id."""
    content = [row[name] for name in ("input", "answer_prefix", "outputs", "answer")]
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()[:16]
