"""Why a file that torch wrote cannot be loaded: it is corrupt, or whole and of more than plain data."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CORRUPT = "is corrupt or no checkpoint"
# What DeepSpeed's checkpoints hold beside tensors and plain data; nothing else in a file may run.
ZERO_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_CONVERSION = "from lrsa_lightning.checkpoint_files import AtomicFiles; import torch; path = {!r}; "
_CONVERSION += "AtomicFiles().save_checkpoint(torch.load(path, weights_only=False), path)"


def read_index(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds, its tensors left on the disk; None when it cannot be loaded."""
    try:
        index = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception:  # bytes that are no checkpoint can make an unpickler raise anything
        return None
    return index if isinstance(index, dict) else None


def fault_of_file(path: Path) -> str | None:
    """Why a file cannot be loaded; None where it can."""
    if read_index(path) is not None:
        return None
    classes = foreign_classes(path)
    if not classes:
        return CORRUPT
    return (
        f"is whole, but holds {', '.join(classes)}: only its own code could make that again, and none of a checkpoint "
        f'is run. If you trust the file, make it plain with python -c "{_CONVERSION.format(str(path))}"'
    )


def foreign_classes(path: Path, known: Sequence[str] = ()) -> list[str] | None:
    """The classes that a complete file holds beside tensors and plain data; None when it is corrupt.

    Args:
        path: of the file.
        known: names that are loaded all the same.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # its table of contents is what torch writes last
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            archive.read(pickled)  # against its checksum
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return None
    return sorted({*found} - {*known})
