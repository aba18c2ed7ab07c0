"""The folder of an evaluation: results are appended batch by batch, so a killed evaluation continues."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.files.folder_lock import FolderLock
from lrsa_lightning.ruler.batches import CacheName, Group
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import Record, by_cell, ratio_of, read_records, write_records
from lrsa_lightning.ruler.samples import Row, digest

RESULTS, SETTINGS = "results.jsonl", "settings.json"


def differs(record: Record, rows: Mapping[str, Row]) -> str | None:
    """How a record's sample differs from the given ones, by id; None where it is one of them."""
    if record.id not in rows:
        return f"is none of the {len(rows)} that were requested"
    row = rows[record.id]
    same = record.outputs == row["outputs"] if record.digest is None else record.digest == digest(row)
    return None if same else "has another content"


def other_samples(folder: Path, samples: Mapping[tuple[str, int], Sequence[Row]], may_lack: bool = False) -> str | None:
    """The first of a run's checks that scored other samples, and how they differ; None where there is none.

    Args:
        folder: of the checks' records.
        samples: rows by task and length; records of other tasks and lengths do not count.
        may_lack: whether a check may have left samples out, because its time was limited.

    Raises:
        InputError: a file is damaged.
    """
    for path in sorted(folder.glob("step-*.jsonl")):
        for (task, length, _), records in by_cell(read_records(path)).items():
            rows = {row["id"]: row for row in samples.get((task, length), ())}
            reasons = [f"{record.id} {reason}" for record in records if rows and (reason := differs(record, rows))]
            if rows and not may_lack and len(records) != len(rows):
                reasons.append(f"{len(records)} samples, not {len(rows)}")
            if reasons:
                return f"{path} holds scores of {task} at length {length}: {reasons[0]}"
    return None


class EvaluationFolder:
    """``results.jsonl`` with a record for each sample, beside ``settings.json``, on which the records depend."""

    def __init__(self, folder: Path, settings: dict[str, Any], sources: Mapping[str, str]):
        """
        Args:
            folder: of the results, which may not exist yet.
            settings: all that every sample's result depends on, model and samples included.
            sources: hashes of the files that some tasks depend on, by name. A later call may add tasks and their
                files, but not other files of the same name.

        Raises:
            InputError: the folder holds results of other or unknown settings.
        """
        self.path = folder / RESULTS
        self._settings_path = folder / SETTINGS
        self._settings = {**settings, "sources": dict(sources)}
        if (earlier := self._earlier_settings()) is not None:
            earlier_sources = earlier.pop("sources", {})
            differing = [key for key in {**earlier, **settings} if earlier.get(key) != settings.get(key)]
            differing += [name for name, digest in sources.items() if earlier_sources.get(name, digest) != digest]
            self._settings["sources"] |= earlier_sources
            if differing:
                raise InputError(
                    f"{folder} holds results of other settings ({', '.join(sorted(differing))} differ): give another "
                    "--output, or remove it"
                )

    def _earlier_settings(self) -> dict[str, Any] | None:
        if not self._settings_path.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise InputError(
                    f"{self.path} holds results, but {SETTINGS} beside it, which says what they are of, is missing: "
                    "give another --output, or remove the results"
                )
            return None
        try:
            earlier = json.loads(self._settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self._settings_path} cannot be read ({error}): give another --output") from error
        if not isinstance(earlier, dict) or not isinstance(earlier.get("sources", {}), dict):
            raise InputError(f"{self._settings_path} holds no settings of an evaluation: give another --output")
        return earlier

    def check(self, evaluator: RulerEvaluator) -> None:
        """Checks that each result is of a sample of this call, or of another task and length of the same settings.

        Raises:
            InputError: a result is of another sample.
        """
        seed = self._settings.get("samples", {}).get("seed")
        samples = {cell: {row["id"]: row for row in rows} for cell, rows in evaluator.samples.items()}
        for record in self.records():
            rows, reason = samples.get((record.task, record.length)), None
            if record.budget not in evaluator.budgets and ratio_of(record.budget) is None:
                reason = f"is scored under {record.budget}, which this evaluation does not know"
            elif rows is not None:
                reason = differs(record, rows)
            elif not re.fullmatch(rf"{record.task}-{record.length}-{seed}-\d+", record.id):
                reason = f"is none of the samples of seed {seed}"
            if reason:
                raise InputError(
                    f"{self.path} holds results of other samples: {record.id} {reason}; give another --output, or "
                    "remove it"
                )

    def records(self) -> list[Record]:
        """The results in the folder.

        Raises:
            InputError: the file is damaged.
        """
        return read_records(self.path) if self.path.exists() else []

    def groups(self, evaluator: RulerEvaluator, ranks: Ranks, batch_sizes: Mapping[CacheName, int]) -> list[Group]:
        """The batches of the samples without a result; the other arguments are those of `RulerEvaluator.groups`."""
        return evaluator.groups(ranks, batch_sizes, {(record.id, record.budget) for record in self.records()})

    def run(
        self, evaluator: RulerEvaluator, model, ranks: Ranks, groups: Sequence[Group], **options
    ) -> Iterator[list[Record]]:
        """Scores the samples without a result; yields each batch after writing it. In the end the file is in order.

        The groups are those of the method of that name, the options further ones of `RulerEvaluator.evaluate`.

        Raises:
            InputError: another process writes into the folder.
        """
        lock = lock_of(self.path.parent)
        if ranks.rank == 0:
            lock.acquire()
        try:
            if ranks.rank == 0:
                write_text(self._settings_path, json.dumps(self._settings, indent=2) + "\n")
                write_records(self.path, self.records())  # without an incomplete last line
            for batch in evaluator.evaluate(model, ranks=ranks, groups=groups, **options):
                if ranks.rank == 0:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write("".join(record.line() for record in batch))
                yield batch
            if ranks.rank == 0:
                cells = by_cell(self.records()).values()
                write_records(self.path, [record for own in cells for record in evaluator.in_order(own)])
        finally:
            lock.release()


def lock_of(folder: Path) -> FolderLock:
    """The lock of an evaluation's folder, into which one process writes at a time."""
    return FolderLock(folder, "evaluation", "wait until it ends or stop it, or give another --output")
