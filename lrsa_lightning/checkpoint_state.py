"""What a checkpoint holds beside tensors, read from a file or from a folder that ZeRO's ranks wrote."""

from pathlib import Path
from typing import Any

from lrsa_lightning.checkpoint_files import TAG, read_index


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The dictionary that Lightning saved: progress, states of callbacks and of the datamodule.

    Args:
        checkpoint: a file, whose tensors stay on the disk, or a folder, whose tensors lie in other files.

    Returns:
        an empty dictionary for what is no checkpoint.
    """
    if checkpoint.is_file():
        return read_index(checkpoint) or {}
    if any((checkpoint / TAG).glob("*_model_states.pt")):
        from lrsa_lightning.distributed.zero_files import read_client_state

        return read_client_state(checkpoint)
    return {}
