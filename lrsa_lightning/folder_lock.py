"""One process at a time writes into a folder."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lrsa_lightning.atomic_text import write_text
from lrsa_lightning.errors import InputError

LOCK, HOLDER = ".lock", ".lock_holder.json"
_PATIENCE = 2.0  # seconds in which a process that has just ended lets go of it
_HELD: set[FileLock] = set()  # a lock that nobody refers to would be let go of


class FolderLock:
    """Held from before a folder's first file is written until the process ends; a dead holder's is free at once.

    The operating system holds the lock (``flock``) on a hidden file in the folder; another beside it says who has it.
    """

    def __init__(self, folder: Path, what: str, way_out: str):
        """
        Args:
            folder: whose files are written; it need not exist.
            what: what lies there, for the error: "run", "evaluation".
            way_out: what the user may do, for the error.
        """
        self._what = f"{what} {folder}"
        self._way_out = way_out
        self._folder = folder.resolve()
        self._holder = self._folder / HOLDER
        self._file = self._folder / LOCK
        self._lock = FileLock(self._file, is_singleton=True)
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Takes the lock, which this process may hold already.

        Raises:
            InputError: another process has it, which is named; or nothing can be written there.
        """
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._made += [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_PATIENCE)
            if not self._file.exists():  # its last holder left nothing behind: the lock is of no use to others
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
        """Lets others have the folder. One that was made for the lock, and holds nothing else, goes."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            if self._made and [path.name for path in self._folder.glob("*")] == [LOCK]:
                self._file.unlink()
                with suppress(OSError):  # others have files around it
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
