"""What a Weights & Biases run left on disk, read with wandb's own records.

wandb 0.31 ships no reader in Python: the file is LevelDB's log format (blocks of 32 KiB, records cut at their ends)
around the protobuf records that wandb itself defines.
"""

import json
import time
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_FILE_HEADER, _BLOCK, _RECORD_HEADER = 7, 2**15, 7
_WHOLE, _LAST = 1, 4
_PATIENCE = 60.0


def records(run_directory: Path) -> list[Record]:
    """The records of all parts of a run, in the order they were written; a resumed run has a part each time."""
    parts = sorted(run_directory.glob("wandb/*run-*/run-*.wandb"))
    return [record for part in parts for record in _when_written(part)]


def _when_written(part: Path) -> list[Record]:
    """wandb's service may write the last records after `wandb.finish` has returned: on a busy machine seconds later."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = _records_of(part.read_bytes())
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{part} was never finished: {len(found)} records"
        time.sleep(0.1)


def _records_of(data: bytes) -> list[Record]:
    found, message, at = [], b"", _FILE_HEADER
    while at + _RECORD_HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _RECORD_HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        message += data[at + _RECORD_HEADER : at + _RECORD_HEADER + length]
        at += _RECORD_HEADER + length
        if kind in (_WHOLE, _LAST):
            found.append(Record.FromString(message))
            message = b""
    return found


def history(run_directory: Path) -> list[dict]:
    """The rows of the run's history, internal keys (_step, _runtime) included; tables and images are objects."""
    return [_values(record.history.item) for record in records(run_directory) if record.HasField("history")]


def config(run_directory: Path) -> dict:
    """The run's configuration, updates of all parts applied."""
    updates = [record.config.update for record in records(run_directory) if record.HasField("config")]
    return {key: value for update in updates for key, value in _values(update).items()}


def _values(items) -> dict:
    values: dict = {}
    for item in items:
        *parents, name = item.nested_key or [item.key]
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = json.loads(item.value_json)
    return values
