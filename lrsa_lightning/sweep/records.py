"""What is kept of a cell between two calls: a record, a log and a lock in ``<runs_dir>/cells``."""

import fcntl
import json
import os
from pathlib import Path

from lrsa_lightning.checkpoints.last import find_last
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.run.directory import RunDirectory
from lrsa_lightning.run.start import set_aside

FINISHED, BROKEN, NEW = "finished", "broken", "new"


class CellRecord:
    """One cell's command and files. The run's own directory is ``<runs_dir>/<name>``."""

    def __init__(self, runs_dir: Path, name: str, command: list[str]):
        self.command = command
        self.run = runs_dir / name
        self.log = runs_dir / "cells" / f"{name}.log"
        self._file = self.log.with_name(f"{name}.json")
        self._lock = self.log.with_name(f"{name}.lock")

    def state(self) -> str:
        """FINISHED, BROKEN or NEW: its last process ended with status 0 or otherwise, or there was none.

        Raises:
            InputError: the run directory belongs to another command, or to no cell of a sweep.
        """
        if not self._file.exists():
            if (self.run / "config.yaml").exists():
                raise InputError(f"{self.run} holds a run that is no cell of this sweep: give another --runs_dir")
            return NEW
        known = json.loads(self._file.read_text(encoding="utf-8"))
        if known["command"] != self.command:
            raise InputError(
                f"{self.run} was started by another command, {' '.join(known['command'])}: give another --runs_dir"
            )
        return FINISHED if known["status"] == 0 else BROKEN

    def write(self, status: int | None) -> None:
        """Writes the command and its exit status, None while it runs, in one atomic step."""
        write_text(self._file, json.dumps({"command": self.command, "status": status}, indent=1))

    def clear_start(self) -> bool:
        """Prepares a broken cell for its next process.

        Returns:
            True where the run directory has checkpoints: the run resumes, or says why it cannot. Otherwise the
            directory is set aside and the run starts from the beginning.
        """
        last = find_last(RunDirectory(self.run).checkpoints)
        if last.path is not None or last.is_blocked:
            return True
        if self.run.exists():
            set_aside(self.run)
        return False

    def lock(self) -> int | None:
        """A descriptor that locks the cell, or None where another process holds the lock.

        The lock lives as long as this process or a child that inherits the descriptor. A cell whose parent was killed
        keeps running and keeps its lock: it is not started a second time.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def tail(self, lines: int = 15) -> str:
        """The end of the log, indented."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
