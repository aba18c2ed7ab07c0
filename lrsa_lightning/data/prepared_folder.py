"""A folder of prepared data: one process at a time writes it, complete or not at all, and each use checks it."""

import errno
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
_LOCKS = ".locks"
ARROW, REPORT, _MANIFEST = "samples.arrow", "report.json", "manifest.json"
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EDQUOT)
# The name of a folder that a process is writing, or was writing when it was killed: tempfile adds eight characters.
_PARTIAL = re.compile(r"\.(?P<of>.+)-[a-z0-9_]{8}")
_KEYED = re.compile(r"(train|val)-[0-9a-f]{20}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare a folder while others wait. Clears what killed processes left beside it.

    The lock is the operating system's: it releases the lock of a killed process.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    try:
        with _held(_lock_of(folder), folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(folder)
            yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"no space left on the disk of {folder.parent}: set data.cache_dir to another") from error
        if error.errno in _NOT_WRITABLE:
            reason = f"{folder.parent} cannot be written ({error.strerror})"
            raise InputError(f"{reason}: set data.cache_dir to another folder") from error
        raise


def _lock_of(folder: Path) -> FileLock:
    """The lock of a folder, outside the folder of all prepared data. Its holder may acquire it again."""
    folder = folder.resolve()
    locks = folder.parent.parent / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.parent.name}-{folder.name}.lock", is_singleton=True)


@contextmanager
def _held(lock: FileLock, folder: Path) -> Iterator[None]:
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process prepares %s: waiting for it", folder)
        held = lock.acquire()
    with held:
        yield


@contextmanager
def partial_of(folder: Path) -> Iterator[Path]:
    """A folder to write into. It moves to its place with a list of its files; after an error it is removed."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        files = {path.name: [path.stat().st_size, hash_of(path)] for path in partial.iterdir()}
        (partial / _MANIFEST).write_text(json.dumps(files), encoding="utf-8")
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_complete(folder: Path) -> bool:
    """Whether the folder exists and is complete. Reads all its files, and removes a corrupt folder with a warning.

    To be called within `alone`.

    Raises:
        InputError: a corrupt folder holds files that are not of prepared data.
    """
    if not folder.is_dir():
        return False
    if fault := _fault_of(folder):
        log.warning("prepared data %s is corrupt (%s): it is prepared anew", folder, fault)
        _remove(folder)
        return False
    return True


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        for block in iter(lambda: content.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _fault_of(folder: Path) -> str | None:
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name in (ARROW, REPORT):
            size, content = files[name]
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found} bytes, not {size}"
            if hash_of(folder / name) != content:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, LookupError) as error:
        return f"{_MANIFEST} or a file it lists cannot be read: {error}"
    return None


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same content
            raise


def _clear_leftovers(folder: Path) -> None:
    """Removes partial folders whose process was killed: it does not hold the lock."""
    for path in folder.parent.iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if not match or not (match["of"] == folder.name or _KEYED.fullmatch(match["of"])) or not _is_ours(path):
            continue
        try:
            with _lock_of(folder.parent / match["of"]).acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
        except Timeout:
            continue


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {ARROW, REPORT, _MANIFEST}


def _remove(folder: Path) -> None:
    if not _is_ours(folder):
        raise InputError(f"{folder} is corrupt and holds files that are not of prepared data: move or remove it")
    # The folder leaves its place at once. The next call clears what an interrupted removal leaves.
    doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    folder.rename(doomed)
    shutil.rmtree(doomed)
