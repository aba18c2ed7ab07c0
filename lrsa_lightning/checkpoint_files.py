"""Checkpoints as files or folders: written whole or not at all, and the newest whole one found again."""

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lrsa_lightning.checkpoint_faults import CORRUPT, ZERO_CLASSES, fault_of_file, foreign_classes, read_index
from lrsa_lightning.disk import disk_full, sync
from lrsa_lightning.errors import InputError
from lrsa_lightning.plain_state import plain_checkpoint

LAST = "last.ckpt"
BEST = "best.ckpt"
PARTIAL = ".partial"
TAG = "checkpoint"  # the folder of a ZeRO checkpoint that holds the ranks' files
_WRITTEN = "written.json"


class AtomicFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when all of it is on the disk.

    Lightning's own writes to the system's temporary folder and copies, which a kill can cut short, and holds the
    checkpoint in memory a second time.

    Attributes:
        disk_full: why the last save was given up, by a disk that is full, read-only or failing; None when it
            succeeded. Nothing is raised, for then the ranks that do not write would wait for this one for ever.
    """

    disk_full: OSError | None = None

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: None = None) -> None:
        """Replaces `path` at once, or leaves it as it was and nothing beside it.

        Raises:
            InputError: a part could not be loaded again; the checkpoint is written without it, if it can do without.
        """
        path, self.disk_full = Path(path), None
        checkpoint, left_out = plain_checkpoint(checkpoint)
        partial = partial_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(checkpoint, partial)
            os.replace(partial, path)
            sync(path.parent)
        except BaseException as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self.disk_full = disk_full(error)
            if self.disk_full is None:
                raise
        if left_out and self.disk_full is None:
            raise saved_without(path, left_out)

    def load_checkpoint(self, path: str | Path, *args, weights_only: bool | None = None, **kwargs) -> dict:
        """Loads tensors and plain data only, whatever ``weights_only`` says.

        Raises:
            InputError: it is a folder.
        """
        if Path(path).is_dir():
            raise InputError(
                f"{path} is of a run with ZeRO: resume it with trainer.strategy sp_deepspeed, or make a model of it "
                "with scripts/export_hf.py"
            )
        return super().load_checkpoint(path, *args, weights_only=True, **kwargs)


def saved_without(path: Path, left_out: str) -> InputError:
    """The error that ends a run once it has saved all that could be loaded again."""
    return InputError(f"{left_out}: it could not be loaded again, and {path} was saved without it")


def write_whole(checkpoint: dict, path: Path) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


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
    """The list inside a folder; None where others wrote it, or where it is corrupt."""
    try:
        return Written(**json.loads((folder / _WRITTEN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_universal(path: Path) -> bool:
    """Whether DeepSpeed's ds_to_universal made it, for any number of ranks."""
    return (path / "latest_universal").is_file()


def link(name: Path, target: Path) -> None:
    """Lets a name of the same folder mean another file, from one instant to the next."""
    partial = partial_of(name)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, name)
    sync(name.parent)


def fault_of(path: Path) -> str | None:
    """Why a checkpoint, file or folder, cannot be loaded, as the rest of a sentence; None where it can.

    A ZeRO checkpoint is a folder with a list of its files; one that Lightning wrote has `latest`, the last of them.
    """
    if not path.is_dir():
        return fault_of_file(path)
    if is_universal(path):
        return None
    if _step_of_folder(path) is None:
        return CORRUPT
    classes = [foreign_classes(file, ZERO_CLASSES) for file in sorted((path / TAG).glob("*_model_states.pt"))[:1]]
    if None in classes:
        return CORRUPT
    return f"is whole, but holds {', '.join(classes[0])}, and no code of a checkpoint is run" if any(classes) else None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint, file or folder, can be loaded."""
    return fault_of(path) is None


def step_of(path: Path) -> int | None:
    """Optimizer steps of a checkpoint that training can go on from; None when there is a fault, or weights only."""
    if path.is_dir():
        return _step_of_folder(path) if fault_of(path) is None else None
    index = read_index(path) or {}
    step = index.get("global_step")
    return step if "optimizer_states" in index and isinstance(step, int) else None


def _step_of_folder(path: Path) -> int | None:
    if not (path / _WRITTEN).exists():
        digits = re.findall(r"\d+", path.name)
        return int(digits[-1]) if (path / "latest").is_file() and digits else None
    written = read_written(path)
    return written.step if written is not None and _all_there(path, written) else None


def _all_there(folder: Path, written: Written) -> bool:
    files = {folder / name: size for name, size in written.sizes.items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


@dataclass
class Last:
    """What `last` means in a folder.

    Attributes:
        path: the newest checkpoint to go on from, None when there is none.
        skipped: names of checkpoints that training cannot go on from, and of writes that were cut short.
        faults: why, of the checkpoints among them.
    """

    path: Path | None
    skipped: list[str]
    faults: dict[str, str] = field(default_factory=dict, compare=False)

    def check(self, folder: Path) -> "Last":
        """Itself, where training may go on from it, or begin.

        Raises:
            InputError: checkpoints lie in the folder, and training can go on from none of them.
        """
        if self.path is None and self.faults:
            faults = "\n".join(f"  {name} {fault}" for name, fault in self.faults.items())
            raise InputError(
                f"{folder} holds checkpoints, but none to go on from, and the run is not started over beside them\n"
                f"{faults}\n  Put a complete checkpoint there, name one with --ckpt_path, or give a new --run_name"
            )
        return self

    @property
    def is_blocked(self) -> bool:
        """Whether there are complete checkpoints, but none that training can go on from."""
        return self.path is None and any(fault != CORRUPT for fault in self.faults.values())

    def warning(self) -> str:
        """What was left out and why, for a user to see; empty where nothing was."""
        if not self.skipped:
            return ""
        taken = self.path.name if self.path else "none, for there is no other"
        text = f"not whole and left out: {', '.join(self.skipped)}; last is {taken}"
        reasons = [f"\n  {name} {fault}" for name, fault in self.faults.items() if fault != CORRUPT]
        return text + "".join(reasons)


def find_last(folder: Path) -> Last:
    """The checkpoint that last.ckpt names, or one written since of a later step; without it, the newest by time.

    Time alone would not do: copying a run gives its files any order.
    """
    files = checkpoints_in(folder)
    steps = {path: step_of(path) for path in files}
    corrupt = sorted(path for path in files if steps[path] is None)
    skipped = [path.name for path in corrupt]
    skipped += sorted(path.name for path in folder.glob(f".*.ckpt{PARTIAL}") if not path.is_symlink())
    whole = {path: (path.stat().st_mtime_ns, step) for path, step in steps.items() if step is not None}
    newest = max(whole, key=whole.get, default=None)
    last = folder / LAST
    named = folder / last.readlink().name if last.is_symlink() else None
    if named in whole:
        since = last.lstat().st_mtime_ns
        later = [path for path, (time, step) in whole.items() if time > since and step > whole[named][1]]
        newest = max(later, key=whole.get, default=named)
    return Last(newest, skipped, {path.name: fault_of(path) or "is none to train on from" for path in corrupt})


def checkpoints_in(folder: Path) -> list[Path]:
    """All that lies there as a checkpoint, whole or not; writes that were cut short before their end are none."""
    files = [path for pattern in ("*.ckpt", "*.universal") for path in folder.glob(pattern)]
    links = [path for path in files if path.name in (LAST, BEST) and path.is_symlink()]
    # A link to elsewhere is all that a folder may have of a checkpoint.
    beside = {path for path in links if not path.exists() or path.resolve().parent == folder.resolve()}
    return [path for path in files if path not in beside]
