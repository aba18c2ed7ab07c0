"""Full, read-only or missing disks: an error before the first step; after it, training goes on."""

import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
_UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
)


def disk_full(error: BaseException | None) -> OSError | None:
    """The disk's error (full, over quota, read-only, failing, gone) that caused an error; None if there is none.

    torch raises its own error while the file's error is handled.
    """
    while error is not None and getattr(error, "errno", None) not in _UNWRITABLE:
        error = error.__cause__ or error.__context__
    return error


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raises an InputError if nothing can be written into a folder or, where it does not exist, its nearest parent."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"written")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}: {there}): free the disk or make it writable, or give "
            "another --runs_dir"
        ) from error


class BestEffort:
    """Writes that training can do without. It warns of the first one that fails, and counts the others.

    The messages name ``what``, the files.
    """

    def __init__(self, what: str):
        self._what = what
        self._failures = 0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Suppresses the error of a write inside it."""
        try:
            yield
        except OSError as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("%s: not written (%s); training goes on", self._what, error)

    def sum_up(self) -> None:
        """Warns of the number of failed writes, if any."""
        if self._failures:
            log.warning("%s: %d writes failed", self._what, self._failures)
        self._failures = 0
