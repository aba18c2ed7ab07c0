"""Checkpoints as files or folders: written whole or not at all, and the newest whole one found again."""

import errno
import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lrsa_lightning.errors import InputError

LAST = "last.ckpt"
BEST = "best.ckpt"
PARTIAL = ".partial"
TAG = "checkpoint"  # the folder of a ZeRO checkpoint that holds the ranks' files
_WRITTEN = "written.json"
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
        partial = partial_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(checkpoint, partial)
            os.replace(partial, path)
            sync(path.parent)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            self.disk_full = disk_full(error)
            if self.disk_full is None:
                raise

    def load_checkpoint(self, path: str | Path, *args, **kwargs) -> dict:
        """
        Raises:
            InputError: it is a folder.
        """
        if Path(path).is_dir():
            raise InputError(
                f"{path} is of a run with ZeRO: resume it with trainer.strategy sp_deepspeed, or make a model of it "
                "with scripts/export_hf.py"
            )
        return super().load_checkpoint(path, *args, **kwargs)


def write_whole(checkpoint: dict, path: Path) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(error: BaseException | None) -> OSError | None:
    """The error of a full disk behind an error: torch raises its own while the file's is handled."""
    while error is not None and getattr(error, "errno", None) not in _FULL:
        error = error.__cause__ or error.__context__
    return error


@dataclass
class Written:
    """What the ranks of a ZeRO checkpoint wrote.

    Attributes:
        step: optimizer steps behind it.
        world_size: ranks.
        stage: of ZeRO.
        sizes: bytes of each file, by its path in the folder.
    """

    step: int
    world_size: int
    stage: int
    sizes: dict[str, int] = field(default_factory=dict)


def partial_of(path: Path) -> Path:
    """Where a checkpoint lies until it is whole, and again while it is removed."""
    return path.with_name(f".{path.name}{PARTIAL}")


def remove(path: Path) -> None:
    """Removes a file, link or folder, or nothing; a folder is out of its place before the first of its files is."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.endswith(PARTIAL) else partial_of(path)
        if doomed != path:
            remove(doomed)
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def make_empty(folder: Path) -> None:
    """Makes a folder, without what was in it."""
    remove(folder)
    folder.mkdir(parents=True)


def publish(partial: Path, path: Path, written: Written) -> None:
    """Moves a folder, all of whose files are on the disk, to its place, with a list of them inside."""
    (partial / "latest").write_text(TAG, encoding="utf-8")
    files = [file for file in partial.rglob("*") if file.is_file()]
    written.sizes = {str(file.relative_to(partial)): file.stat().st_size for file in files}
    (partial / _WRITTEN).write_text(json.dumps(asdict(written)), encoding="utf-8")
    for folder in (partial / TAG, partial):
        for file in folder.iterdir():
            sync(file)
        sync(folder)
    if path.is_dir():
        # A folder cannot replace another; the run that writes a step again has resumed from one before it.
        aside = partial_of(path.with_name(f"old-{path.name}"))
        remove(aside)
        os.replace(path, aside)
        os.replace(partial, path)
        remove(aside)
    else:
        remove(path)
        os.replace(partial, path)
    sync(path.parent)


def read_written(folder: Path) -> Written | None:
    """The list inside a folder; None where others wrote it, or where it is torn."""
    try:
        return Written(**json.loads((folder / _WRITTEN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_universal(path: Path) -> bool:
    """Whether DeepSpeed's ds_to_universal made it, for any number of ranks."""
    return (path / "latest_universal").is_file()


def is_whole(path: Path) -> bool:
    """Whether a checkpoint, file or folder, can be loaded."""
    if path.is_dir():
        return is_universal(path) or step_of(path) is not None
    return read_index(path) is not None


def link(name: Path, target: Path) -> None:
    """Lets a name of the same folder mean another file, from one instant to the next."""
    partial = partial_of(name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, name)
    sync(name.parent)


def read_index(path: Path) -> dict | None:
    """What a checkpoint holds, its tensors left on the disk; None when it is torn."""
    try:
        return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def step_of(path: Path) -> int | None:
    """Optimizer steps behind a checkpoint that training can go on from; None when it is torn or holds weights only.

    A ZeRO checkpoint is a folder with a list of its files; one that Lightning wrote has `latest`, the last of them.
    """
    if path.is_dir():
        if not (path / _WRITTEN).exists():
            digits = re.findall(r"\d+", path.name)
            return int(digits[-1]) if (path / "latest").is_file() and digits else None
        written = read_written(path)
        return written.step if written is not None and _all_there(path, written) else None
    index = read_index(path) or {}
    return index["global_step"] if "optimizer_states" in index else None


def _all_there(folder: Path, written: Written) -> bool:
    files = {folder / name: size for name, size in written.sizes.items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


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
