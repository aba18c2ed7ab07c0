"""Checkpoints as files: written whole or not at all, and the newest whole one found again."""

import errno
import os
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

LAST = "last.ckpt"
BEST = "best.ckpt"
PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when all of it is on the disk.

    Lightning's own writes to the system's temporary folder and copies, which a kill can cut short, and holds the
    checkpoint in memory a second time.

    Attributes:
        disk_full: why the last save was given up, by a disk or quota that is full; None when it succeeded. Nothing is
            raised, for then the ranks that do not write would wait for this one for ever.
    """

    disk_full: OSError | None = None

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: None = None) -> None:
        """Replaces `path` at once, or leaves it as it was and nothing beside it."""
        path, self.disk_full = Path(path), None
        partial = path.with_name(f".{path.name}{PARTIAL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(checkpoint, partial)
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            self.disk_full = _disk_full(error)
            if self.disk_full is None:
                raise


def write_whole(checkpoint: dict, path: Path) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(error: BaseException | None) -> OSError | None:
    """The error of a full disk behind an error: torch raises its own while the file's is handled."""
    while error is not None and getattr(error, "errno", None) not in _FULL:
        error = error.__cause__ or error.__context__
    return error


def link(name: Path, target: Path) -> None:
    """Lets a name of the same folder mean another file, from one instant to the next."""
    partial = name.with_name(f".{name.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, name)
    sync_folder(name.parent)


def read_index(path: Path) -> dict | None:
    """What a checkpoint holds, its tensors left on the disk; None when it is torn."""
    try:
        return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def step_of(path: Path) -> int | None:
    """Optimizer steps behind a checkpoint that training can go on from; None when it is torn or holds weights only.

    A ZeRO checkpoint is a folder, whose file `latest` is written last.
    """
    if path.is_dir():
        digits = re.findall(r"\d+", path.name)
        return int(digits[-1]) if (path / "latest").is_file() and digits else None
    index = read_index(path) or {}
    return index["global_step"] if "optimizer_states" in index else None


@dataclass
class Last:
    """What `last` means in a folder.

    Attributes:
        path: the newest whole checkpoint, None when there is none.
        skipped: names of torn checkpoints and of writes that were cut short.
    """

    path: Path | None
    skipped: list[str]


def find_last(folder: Path) -> Last:
    """The checkpoint that last.ckpt names, or one written since of a later step; without it, the newest by time.

    Time alone would not do: copying a run gives its files any order.
    """
    files = [path for path in folder.glob("*.ckpt") if not path.is_symlink()]
    steps = {path: step_of(path) for path in files}
    skipped = sorted(path.name for path in files if steps[path] is None)
    skipped += sorted(path.name for path in folder.glob(f".*.ckpt{PARTIAL}") if not path.is_symlink())
    whole = {path: (path.stat().st_mtime_ns, step) for path, step in steps.items() if step is not None}
    newest = max(whole, key=whole.get, default=None)
    last = folder / LAST
    named = folder / last.readlink().name if last.is_symlink() else None
    if named in whole:
        since = last.lstat().st_mtime_ns
        later = [path for path, (time, step) in whole.items() if time > since and step > whole[named][1]]
        newest = max(later, key=whole.get, default=named)
    return Last(newest, skipped)
