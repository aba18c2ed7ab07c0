"""An evaluation in a folder: results are appended batch by batch, so a killed one continues where it was."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.folder_lock import FolderLock
from lrsa_lightning.ruler.evaluator import RulerEvaluator, Share
from lrsa_lightning.ruler.results import Record, read_records, write_records
from lrsa_lightning.whole_text import write_text

RESULTS, SETTINGS = "results.jsonl", "settings.json"


class EvaluationFolder:
    """``results.jsonl``, a record a sample, beside ``settings.json``, what they depend on."""

    def __init__(self, folder: Path, settings: dict[str, Any], sources: Mapping[str, str]):
        """
        Args:
            folder: where the results lie, or will.
            settings: all that every sample's result depends on, model and samples included.
            sources: hashes of the files that some tasks are made from, by name. A later call may bring further tasks
                and with them further files, but not others of the same name.

        Raises:
            InputError: the folder holds results of other settings.
        """
        self.path = folder / RESULTS
        self._settings_path = folder / SETTINGS
        self._settings = {**settings, "sources": dict(sources)}
        if self._settings_path.exists():
            earlier = json.loads(self._settings_path.read_text(encoding="utf-8"))
            earlier_sources = earlier.pop("sources", {})
            differing = [key for key in {**earlier, **settings} if earlier.get(key) != settings.get(key)]
            differing += [name for name, digest in sources.items() if earlier_sources.get(name, digest) != digest]
            self._settings["sources"] |= earlier_sources
            if differing:
                raise InputError(
                    f"{folder} holds results of other settings ({', '.join(sorted(differing))} differ): give another "
                    "--output, or remove it"
                )

    def records(self) -> list[Record]:
        """The results there are."""
        return read_records(self.path) if self.path.exists() else []

    def run(
        self, evaluator: RulerEvaluator, model, share: Share, generation: bool, teacher_forcing: bool
    ) -> Iterator[list[Record]]:
        """Scores what is lacking; yields each batch once it is on disk.

        Raises:
            InputError: another process writes into the folder.
        """
        lock = lock_of(self.path.parent)
        if share.rank == 0:
            lock.acquire()
        try:
            yield from self._run(evaluator, model, share, generation, teacher_forcing)
        finally:
            lock.release()

    def _run(
        self, evaluator: RulerEvaluator, model, share: Share, generation: bool, teacher_forcing: bool
    ) -> Iterator[list[Record]]:
        earlier = self.records()
        if share.rank == 0:
            write_text(self._settings_path, json.dumps(self._settings, indent=2) + "\n")
            write_records(self.path, earlier)  # without a line that was cut short
        done = {(record.id, record.budget) for record in earlier}
        for batch in evaluator.evaluate(model, generation, teacher_forcing, share, done):
            if share.rank == 0:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(record.line() for record in batch))
            yield batch


def lock_of(folder: Path) -> FolderLock:
    """That of an evaluation's folder, which one process writes into at a time."""
    return FolderLock(folder, "evaluation", "wait until it ends or stop it, or give another --output")
