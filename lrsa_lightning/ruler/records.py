"""The records of an evaluation, one for each sample, and their file, which users copy, cut and edit."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.files.json_lines import read_lines
from lrsa_lightning.ruler.tasks import TASKS

CellName = tuple[str, int, str]
_RATIO = re.compile(r"r(\d*\.?\d+(?:e-?\d+)?)")


@dataclass(frozen=True)
class Record:
    """One sample under one cache budget.

    Attributes:
        id: of the sample.
        task: its task.
        length: its maximum length in tokens.
        budget: r1 for the dense cache, r0.5, ... or a mode's name.
        fill: the sample's tokens over its maximum length.
        outputs: the expected strings.
        depths: their places in the context, 0..1; empty where they have none.
        prediction: the generated text; None without generation.
        score: its score, 0..1.
        hits: whether each expected string is in it.
        kv_bytes: bytes of the cache after the prompt.
        nll: mean negative log-likelihood of the reference's tokens; None without teacher forcing.
        exact_match: whether greedy decoding would write the reference.
        digest: of the sample's content, `samples.digest`; None in files of earlier versions.
    """

    id: str
    task: str
    length: int
    budget: str
    fill: float
    outputs: list[str]
    depths: list[float]
    prediction: str | None = None
    score: float | None = None
    hits: list[bool] = field(default_factory=list)
    kv_bytes: int | None = None
    nll: float | None = None
    exact_match: bool | None = None
    digest: str | None = None

    @property
    def cell(self) -> CellName:
        """Task, length and budget."""
        return self.task, self.length, self.budget

    def line(self) -> str:
        """As a line of a results file."""
        return json.dumps(asdict(self)) + "\n"


def without_texts(record: Record) -> Record:
    """The record with hashes of its expected strings, and without its prediction."""
    hashed = [hashlib.sha256(output.encode("utf-8")).hexdigest()[:12] for output in record.outputs]
    return replace(record, outputs=hashed, prediction=None)


def by_cell(records: Iterable[Record]) -> dict[CellName, list[Record]]:
    """The records of each cell, in the order of their first records."""
    cells: dict[CellName, list[Record]] = {}
    for record in records:
        cells.setdefault(record.cell, []).append(record)
    return cells


def ratio_of(budget: str) -> float | None:
    """The retention ratio a budget's label names; None for a mode's name."""
    match = _RATIO.fullmatch(budget)
    return float(match[1]) or None if match else None


def are_of_same_samples(groups: Iterable[Iterable[Record]]) -> bool:
    """Whether all groups are of the same samples, by id and expected strings, and by digest where it is known."""
    groups = [list(group) for group in groups]
    contents: dict[str, set[str]] = {}
    for record in chain.from_iterable(groups):
        contents.setdefault(record.id, set()).update({record.digest} - {None})
    same = {frozenset((record.id, *record.outputs) for record in group) for group in groups}
    return len(same) < 2 and all(len(digests) < 2 for digests in contents.values())


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes a results file atomically."""
    write_text(path, "".join(record.line() for record in records))


def read_records(path: Path) -> list[Record]:
    """The records of a results file, without an incomplete last line.

    Raises:
        InputError: the file cannot be read, a line is no record, or a sample has two records under one budget.
    """
    records: dict[tuple[str, CellName], Record] = {}
    for number, row in read_lines(path, cut_short=True):
        try:
            record = _record_of(row)
            if records.setdefault((record.id, record.cell), record) is not record:
                raise InputError(f"sample {record.id} is there twice under {record.budget}")
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}; remove the line or make the file again") from error
    return [*records.values()]


def _record_of(row: dict[str, Any]) -> Record:
    known = {own.name: own for own in fields(Record)}
    needed = [name for name, own in known.items() if own.default is MISSING and own.default_factory is MISSING]
    for what, names in (("unknown", row.keys() - known), ("missing", needed - row.keys())):
        if names:
            raise InputError(f"{', '.join(sorted(names))} {what}")
    record = Record(**row)
    for name, (is_right, expected) in _EXPECTED.items():
        value = getattr(record, name)
        if not is_right(value) and not (value is None and known[name].default is None):
            raise InputError(f"{name} is {value!r}, expected {expected}")
    return record


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types  # not isinstance: a bool is no number here


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _is_fraction(value: Any) -> bool:
    return _is(int, float)(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return _is(int)(value) and value > 0


# What a line may hold. A value that is None by default may be null.
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is(str), "a text"),
    "task": (lambda value: value in [*TASKS], "a RULER task"),
    "length": (_is_count, "a whole number of tokens"),
    "budget": (_is(str), "a text"),
    "fill": (lambda value: _is(int, float)(value) and value >= 0, "a number of at least 0"),
    "outputs": (_list_of(_is(str)), "a list of texts"),
    "depths": (_list_of(_is_fraction), "a list of numbers from 0 to 1"),
    "prediction": (_is(str), "a text"),
    "score": (_is_fraction, "a number from 0 to 1"),
    "hits": (_list_of(_is(bool)), "a list of true and false"),
    "kv_bytes": (_is_count, "a whole number of bytes"),
    "nll": (_is(int, float), "a number"),  # a diverged model's is NaN
    "exact_match": (_is(bool), "true or false"),
    "digest": (_is(str), "a text"),
}
