"""Checkpoints as files or folders, written atomically: each appears complete, or not at all."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lrsa_lightning.checkpoints.host_copy import HostCopies, in_thread
from lrsa_lightning.checkpoints.plain_state import plain_checkpoint
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import disk_full, sync

LAST = "last.ckpt"
BEST = "best.ckpt"
PARTIAL = ".partial"
TAG = "checkpoint"  # the folder of a ZeRO checkpoint that holds the ranks' files
WRITTEN = "written.json"  # the list of the files of a ZeRO checkpoint


class AtomicFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there once all of it is on the disk.

    Lightning's own plug-in writes to the system's temporary folder and copies from there. A kill can cut that copy
    short, and it holds the checkpoint in memory a second time. Its AsyncCheckpointIO copies a state on the device and
    queues writes without a limit.

    Attributes:
        disk_full: why the last save was given up (a disk that is full, read-only or failing); None if it succeeded.
            Nothing is raised, because the ranks that do not write would wait for this one forever.
        is_in_background: whether a save returns as soon as the state is copied.
    """

    disk_full: OSError | None = None

    def __init__(self, copies: HostCopies | None = None):
        """
        Args:
            copies: makes the copies that a thread writes; new ones if None.
        """
        super().__init__()
        self.copies = copies or HostCopies()
        self.is_in_background = False
        self._in_flight: _Write | None = None

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: None = None) -> None:
        """Replaces `path` at once, or leaves it as it was and nothing beside it.

        Raises:
            InputError: a part could not be loaded again; the checkpoint is written without it, if training can resume
                without it.
        """
        path, self.disk_full = Path(path), None
        checkpoint, left_out = plain_checkpoint(checkpoint)
        copied = None if left_out else self.copied(checkpoint)
        write = functools.partial(_replace, path, checkpoint if copied is None else copied)
        self.begin(write, self._note, wait=copied is None)
        if left_out and self.disk_full is None:
            raise saved_without(path, left_out)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Saves inside it return as soon as the state is copied; a thread writes the copy, and `finish` ends the save.

        A second save must not begin before that.
        """
        self.is_in_background = True
        try:
            yield
        finally:
            self.is_in_background = False

    def copied(self, state: Any) -> Any | None:
        """The state's copy for a thread; None outside of `in_background`, or if the host has no memory for it."""
        return self.copies.of(state) if self.is_in_background else None

    def begin(self, write: Callable[[], None], conclude: Callable[[Exception | None], None], wait: bool) -> None:
        """Begins a save.

        Args:
            write: does so, and no more; in a thread unless this call is to wait.
            conclude: gets the error of `write`, at once or by `finish`.
            wait: whether to return only after the conclusion.
        """
        if wait:
            conclude(error_of(write))
        else:
            self._in_flight = _Write(in_thread(write), conclude)

    @property
    def is_written(self) -> bool:
        """Whether `finish` would not have to wait."""
        return self._in_flight is None or self._in_flight.future.done()

    def finish(self) -> None:
        """Waits for the write in flight, and concludes the save; nothing happens if there is none.

        Raises:
            Exception: that of the write, unless it is noted in `disk_full`.
        """
        if self._in_flight is not None:
            error, conclude = self._in_flight.future.exception(), self._in_flight.conclude
            self._in_flight = None
            self.copies.release()
            conclude(error)

    def abandon(self) -> Exception | None:
        """Waits for the write in flight without a conclusion that all ranks draw together; returns its error."""
        write, self._in_flight = self._in_flight, None
        return None if write is None else write.future.exception()

    def _note(self, error: Exception | None) -> None:
        self.disk_full = disk_full(error)
        if error is not None and self.disk_full is None:
            raise error

    def load_checkpoint(self, path: str | Path, *args, weights_only: bool | None = None, **kwargs) -> dict:
        """Loads tensors and plain data only, whatever ``weights_only`` says.

        Raises:
            InputError: the path is a folder.
        """
        if Path(path).is_dir():
            raise InputError(
                f"{path} is a ZeRO checkpoint: resume it with trainer.strategy sp_deepspeed, or export a model from it "
                "with `lrsa export`"
            )
        return super().load_checkpoint(path, *args, weights_only=True, **kwargs)


@dataclass
class _Write:
    """A write that has begun, and what follows it."""

    future: Future
    conclude: Callable[[Exception | None], None]


def _replace(path: Path, checkpoint: dict) -> None:
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(checkpoint, partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def error_of(function: Callable[..., None], *arguments) -> Exception | None:
    """Calls a function; returns its error instead of raising it."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def saved_without(path: Path, left_out: str) -> InputError:
    """The error that ends a run after it has saved everything that can be loaded again."""
    return InputError(f"{left_out}: it could not be loaded again, and {path} was saved without it")


def write_synced(checkpoint: dict, path: Path) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


@dataclass
class Written:
    """What the ranks of a ZeRO checkpoint wrote.

    Attributes:
        step: optimizer steps taken.
        world_size: ranks.
        stage: of ZeRO.
        sizes: bytes of each file, by its path in the folder.
    """

    step: int
    world_size: int
    stage: int
    sizes: dict[str, int] = field(default_factory=dict)


def partial_of(path: Path) -> Path:
    """The hidden place of a checkpoint until it is complete, and while it is removed."""
    return path.with_name(f".{path.name}{PARTIAL}")


def remove(path: Path) -> None:
    """Removes a file, link or folder, if there is one; moves a folder to its hidden place before deleting its files."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.endswith(PARTIAL) else partial_of(path)
        if doomed != path:
            remove(doomed)
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def make_empty(folder: Path) -> None:
    """Makes a folder, and removes an earlier one with all its files."""
    remove(folder)
    folder.mkdir(parents=True)


def publish(partial: Path, path: Path, written: Written) -> None:
    """Moves a folder to its place, with a list of its files inside. All files must be on the disk."""
    (partial / "latest").write_text(TAG, encoding="utf-8")
    files = [file for file in partial.rglob("*") if file.is_file()]
    written.sizes = {str(file.relative_to(partial)): file.stat().st_size for file in files}
    (partial / WRITTEN).write_text(json.dumps(asdict(written)), encoding="utf-8")
    for folder in (partial / TAG, partial):
        for file in folder.iterdir():
            sync(file)
        sync(folder)
    if path.is_dir():
        # A folder cannot replace another. A run that writes a step again has resumed from an earlier one.
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
    """The list inside a folder; None if another program wrote the folder, or the list is corrupt."""
    try:
        return Written(**json.loads((folder / WRITTEN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_universal(path: Path) -> bool:
    """Whether DeepSpeed's ds_to_universal made the folder; it can be loaded by any number of ranks."""
    return (path / "latest_universal").is_file()


def link(name: Path, target: Path) -> None:
    """Atomically makes a name refer to another file of the same folder."""
    partial = partial_of(name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, name)
    sync(name.parent)
