"""A start that fails before its first optimizer step leaves nothing in its way; what may be worth something is kept."""

import json
import logging
import os
import shutil
from pathlib import Path

from lrsa_lightning.atomic_text import write_text
from lrsa_lightning.folder_lock import HOLDER, LOCK

log = logging.getLogger(__name__)
MARKER = ".start.json"
SET_ASIDE = ".set_aside"


class RunStart:
    """What a command adds to its run directory, under a marker of ours until it has taken its first optimizer step.

    The marker says what lay there before, which is never touched; without it nothing is.

    Attributes:
        is_pending: it is marked, and no step is taken yet.
    """

    def __init__(self, folder: Path):
        """
        Args:
            folder: the run directory, whose lock this process holds; it need not exist.
        """
        self._folder = folder
        self._marker = folder / MARKER
        self.is_pending = False

    def begin(self) -> None:
        """Marks the directory, before the first file is written."""
        there = sorted(path.name for path in self._folder.glob("*") if path.name not in (LOCK, HOLDER)) or None
        write_text(self._marker, json.dumps({"there_before": there}))
        self.is_pending = True

    def succeed(self) -> None:
        """A step is taken, or the command has ended well: what was added stays."""
        if self.is_pending:
            self._marker.unlink(missing_ok=True)
            self.is_pending = False

    def undo(self) -> None:
        """Clears what a start left that failed or was killed; does nothing without its marker."""
        self.is_pending = False
        if not self._marker.exists():
            return
        there_before = _there_before(self._folder)
        added = [
            path for path in self._folder.iterdir() if path.name not in (*(there_before or []), MARKER, LOCK, HOLDER)
        ]
        if not any(map(_holds_checkpoints, added)):
            self._clear(added)
        self._marker.unlink()
        if there_before is None and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _clear(self, paths: list[Path]) -> None:
        """Removes files and folders of the start; where something was measured, sets them aside."""
        if any(map(_is_measured, paths)):
            place = _free_place(self._folder)
            place.mkdir(parents=True)
            for path in paths:
                os.replace(path, place / path.name)
            log.warning("%s: no step was taken; what was measured before it lies in %s", self._folder, place)
            return
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_start(folder: Path) -> bool:
    """Whether a directory holds only a start, running or failed, that has not come to its first step."""
    return (folder / MARKER).exists() and "config.yaml" not in (_there_before(folder) or [])


def set_aside(folder: Path) -> Path:
    """Moves a folder, or a link to one, out of its place, to ``.set_aside/<name>-<n>`` beside it; where it lies now."""
    place = _free_place(folder)
    place.parent.mkdir(exist_ok=True)
    os.replace(folder, place)
    return place


def _free_place(folder: Path) -> Path:
    number = 1
    while (place := folder.parent / SET_ASIDE / f"{folder.name}-{number}").exists():
        number += 1
    return place


def _there_before(folder: Path) -> list[str] | None:
    """None where nothing was."""
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))["there_before"]


def _holds_checkpoints(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.ckpt"))


def _is_measured(path: Path) -> bool:
    """Whether it is a metrics file with rows, or holds RULER's records."""
    if path.name == "ruler":
        return any(path.glob("*.jsonl"))
    return path.name == "metrics.jsonl" and path.stat().st_size > 0
