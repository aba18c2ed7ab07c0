"""A lock that lets one process at a time write into a folder."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text

LOCK, HOLDER = ".lock", ".lock_holder.json"
_PATIENCE = 2.0  # seconds; a process that has just ended releases its lock within this time
_HELD: set[FileLock] = set()  # Python would release a lock that nothing refers to


class FolderLock:
    """Held from before the folder's first file until it is released or the process ends, however it ends.

    It is the operating system's lock (``flock``) on a hidden file in the folder. A second hidden file names the holder.

    Args:
        folder: it need not exist yet.
        what: the folder holds, for the error: "run", "evaluation".
        way_out: what the user can do, for the error.
    """

    def __init__(self, folder: Path, what: str, way_out: str):
        self._what = f"{what} {folder}"
        self._way_out = way_out
        self._folder = folder.resolve()
        self._holder = self._folder / HOLDER
        self._file = self._folder / LOCK
        self._lock = FileLock(self._file, is_singleton=True)
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Takes the lock; this process may hold it already.

        Raises:
            InputError: another process holds it, which is named; or the folder cannot be written.
        """
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._made += [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_PATIENCE)
            if not self._file.exists():  # its last holder removed the file meanwhile: others would not see our lock
                self._lock.release(force=True)
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=_PATIENCE)
            write_text(self._holder, json.dumps(holder))
        except Timeout as error:
            raise InputError(f"{self._what} is being written by {self._name_holder()}: {self._way_out}") from error
        except OSError as error:
            reason = f"{error.strerror or error} ({self._folder})"
            raise InputError(f"{self._what} cannot be written: {reason}; give a folder that can") from error
        _HELD.add(self._lock)

    def release(self) -> None:
        """Releases the lock, and removes a folder that was made for it and holds nothing else."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            if self._made and [path.name for path in self._folder.glob("*")] == [LOCK]:
                self._file.unlink()
                with suppress(OSError):  # a parent folder has other files by now
                    for folder in self._made:
                        folder.rmdir()
            self._made = []
        self._lock.release(force=True)
        _HELD.discard(self._lock)

    def _name_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError):
            return "another process"
