"""Which checkpoint of a folder is the last one to resume from, and why others cannot be loaded."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrsa_lightning.checkpoints.atomic_files import BEST, LAST, PARTIAL, TAG, WRITTEN, is_universal, read_written
from lrsa_lightning.errors import InputError

CORRUPT = "is corrupt or no checkpoint"
# The classes in DeepSpeed's checkpoints beside tensors and plain data; no other code of a file may run.
ZERO_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_CONVERSION = "from lrsa_lightning.checkpoints.atomic_files import AtomicFiles; import torch; path = {!r}; "
_CONVERSION += "AtomicFiles().save_checkpoint(torch.load(path, weights_only=False), path)"


@dataclass
class Last:
    """What `last` means in a folder.

    Attributes:
        path: the newest checkpoint to resume from; None if there is none.
        skipped: names of checkpoints that training cannot resume from, and of interrupted writes.
        faults: the reason for each checkpoint among them.
    """

    path: Path | None
    skipped: list[str]
    faults: dict[str, str] = field(default_factory=dict, compare=False)

    def check(self, folder: Path) -> "Last":
        """Itself; raises an InputError if the folder holds checkpoints, but training can resume from none of them."""
        if self.path is None and self.faults:
            faults = "\n".join(f"  {name} {fault}" for name, fault in self.faults.items())
            raise InputError(
                f"{folder} holds checkpoints, but none to resume from, and the run does not start over beside them\n"
                f"{faults}\n  Put a complete checkpoint there, name one with --ckpt_path, or give a new --run_name"
            )
        return self

    @property
    def is_blocked(self) -> bool:
        """Whether there are complete checkpoints, but none that training can resume from."""
        return self.path is None and any(fault != CORRUPT for fault in self.faults.values())

    def warning(self) -> str:
        """What was skipped and why."""
        taken = self.path.name if self.path else "none, for there is no other"
        reasons = [f"\n  {name} {fault}" for name, fault in self.faults.items() if fault != CORRUPT]
        return f"skipped, training cannot resume from: {', '.join(self.skipped)}; last is {taken}{''.join(reasons)}"


def find_last(folder: Path) -> Last:
    """The checkpoint that last.ckpt names, or a later step written since then; without last.ckpt, the newest by time.

    Time alone does not decide, because copying a run can give its files any order.
    """
    steps = {path: step_of(path) for path in _checkpoints_in(folder)}
    unusable = sorted(path for path, step in steps.items() if step is None)
    interrupted = sorted(path.name for path in folder.glob(f".*.ckpt{PARTIAL}") if not path.is_symlink())
    usable = {path: (path.stat().st_mtime_ns, step) for path, step in steps.items() if step is not None}
    newest = max(usable, key=usable.get, default=None)
    last = folder / LAST
    named = folder / last.readlink().name if last.is_symlink() else None
    if named in usable:
        since = last.lstat().st_mtime_ns
        later = [path for path, (time, step) in usable.items() if time > since and step > usable[named][1]]
        newest = max(later, key=usable.get, default=named)
    faults = {path.name: fault_of(path) or "holds weights only, no state to resume from" for path in unusable}
    return Last(newest, [*faults, *interrupted], faults)


def _checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints of a folder, complete or corrupt, without interrupted writes."""
    files = [path for pattern in ("*.ckpt", "*.universal") for path in folder.glob(pattern)]
    links = [path for path in files if path.name in (LAST, BEST) and path.is_symlink()]
    # A link to another folder counts: it may be the only checkpoint here.
    beside = {path for path in links if not path.exists() or path.resolve().parent == folder.resolve()}
    return [path for path in files if path not in beside]


def step_of(path: Path) -> int | None:
    """Optimizer steps of a checkpoint that training can resume from; None if it is faulty or has weights only."""
    if path.is_dir():
        return _step_of_folder(path) if fault_of(path) is None else None
    index = read_index(path) or {}
    step = index.get("global_step")
    return step if "optimizer_states" in index and isinstance(step, int) else None


def fault_of(path: Path) -> str | None:
    """Why a checkpoint, file or folder, cannot be loaded, as the rest of a sentence; None if it can be.

    A ZeRO checkpoint is a folder with a list of its files. Lightning's own has no list; it writes `latest` last.
    """
    if not path.is_dir():
        return _fault_of_file(path)
    if is_universal(path):
        return None
    if _step_of_folder(path) is None:
        return CORRUPT
    classes = [_foreign_classes(file, ZERO_CLASSES) for file in sorted((path / TAG).glob("*_model_states.pt"))[:1]]
    if None in classes:
        return CORRUPT
    if not any(classes):
        return None
    return f"is complete, but holds {', '.join(classes[0])}, and code in a checkpoint is never run"


def _fault_of_file(path: Path) -> str | None:
    if read_index(path) is not None:
        return None
    classes = _foreign_classes(path)
    if not classes:
        return CORRUPT
    return (
        f"is complete, but holds {', '.join(classes)}, which need code to load, and code in a checkpoint is never run. "
        f'If you trust the file, make it plain with python -c "{_CONVERSION.format(str(path))}"'
    )


def read_index(path: Path) -> dict[str, Any] | None:
    """The contents of a checkpoint file, its tensors left on the disk; None if it cannot be loaded."""
    try:
        index = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception:  # an unpickler can raise anything on bytes that are not a checkpoint
        return None
    return index if isinstance(index, dict) else None


def _foreign_classes(path: Path, known: Sequence[str] = ()) -> list[str] | None:
    """The classes in a complete file beside tensors and plain data, without the known ones; None if it is corrupt."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes the table of contents last
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            archive.read(pickled)  # checks its checksum
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as in read_index
        return None
    return sorted({*found} - {*known})


def _step_of_folder(path: Path) -> int | None:
    """Optimizer steps of a ZeRO folder whose files are all there."""
    if not (path / WRITTEN).exists():
        digits = re.findall(r"\d+", path.name)
        return int(digits[-1]) if digits and (path / "latest").is_file() else None
    written = read_written(path)
    if written is None:
        return None
    files = {path / name: size for name, size in written.sizes.items()}
    return written.step if all(file.is_file() and file.stat().st_size == size for file, size in files.items()) else None
