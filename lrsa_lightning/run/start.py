"""A start that fails before its first optimizer step is cleared away; measurements are kept."""

import json
import logging
import os
from itertools import count
from pathlib import Path

from lrsa_lightning.checkpoints.atomic_files import remove
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.files.folder_lock import HOLDER, LOCK

log = logging.getLogger(__name__)
MARKER = ".start.json"
SET_ASIDE = ".set_aside"


class RunStart:
    """Marks a run directory until the command has taken its first optimizer step, so that a failed start can be undone.

    The marker lists what was there before. That is never touched, and without the marker nothing is. The process holds
    the lock of the directory, which need not exist yet.

    Attributes:
        is_pending: the directory is marked, and no step has been taken.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._marker = folder / MARKER
        self.is_pending = False

    def begin(self) -> None:
        """Marks the directory, before the first file is written."""
        there = sorted(path.name for path in self._folder.glob("*") if path.name not in (LOCK, HOLDER)) or None
        write_text(self._marker, json.dumps({"there_before": there}))
        self.is_pending = True

    def succeed(self) -> None:
        """Keeps what was added: a step has been taken, or the command has succeeded."""
        if self.is_pending:
            self._marker.unlink(missing_ok=True)
            self.is_pending = False

    def undo(self) -> None:
        """Clears the files of a start that failed or was killed; does nothing without its marker."""
        self.is_pending = False
        if not self._marker.exists():
            return
        there_before = _there_before(self._folder)
        kept = (*(there_before or []), MARKER, LOCK, HOLDER)
        added = [path for path in self._folder.iterdir() if path.name not in kept]
        if not any(path.is_dir() and any(path.glob("*.ckpt")) for path in added):
            self._clear(added)
        self._marker.unlink()
        if there_before is None and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _clear(self, paths: list[Path]) -> None:
        """Removes files and folders of the start, or sets them aside if something was measured."""
        if any(map(_is_measured, paths)):
            place = _free_place(self._folder)
            place.mkdir(parents=True)
            for path in paths:
                os.replace(path, place / path.name)
            log.warning("%s: no step was taken; what was measured is kept in %s", self._folder, place)
        else:
            for path in paths:
                remove(path)


def is_start(folder: Path) -> bool:
    """Whether a directory holds only a start, running or failed, that has not reached its first step."""
    return (folder / MARKER).exists() and "config.yaml" not in (_there_before(folder) or [])


def set_aside(folder: Path) -> Path:
    """Moves a folder, or a link to one, to ``.set_aside/<name>-<n>`` beside it; returns its new place."""
    place = _free_place(folder)
    place.parent.mkdir(exist_ok=True)
    os.replace(folder, place)
    return place


def _free_place(folder: Path) -> Path:
    places = (folder.parent / SET_ASIDE / f"{folder.name}-{number}" for number in count(1))
    return next(place for place in places if not place.exists())


def _there_before(folder: Path) -> list[str] | None:
    """Names of the files before the start; None if there were none."""
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))["there_before"]


def _is_measured(path: Path) -> bool:
    """Whether a path is a metrics file with rows, or a folder with RULER's records."""
    if path.name == "ruler":
        return any(path.glob("*.jsonl"))
    return path.name == "metrics.jsonl" and path.stat().st_size > 0
