"""The files of DeepSpeed's checkpoints; importing this imports DeepSpeed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint.constants import (
    UNIVERSAL_CHECKPOINT_INFO,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, distributed

from lrsa_lightning.checkpoints.atomic_files import TAG, is_universal, read_written, write_synced
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import disk_full

# checkpoints.last.ZERO_CLASSES names the same without DeepSpeed.
_CLASSES = [LossScaler, ZeroStageEnum, fragment_address]
# torch's switches override the argument of a call. torch refuses both together.
_LOADING = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


class Shards:
    """Writes the files of this rank of one checkpoint, or copies them for a later write.

    Attributes:
        error: of the first file that could not be written. If one rank raised it, the others would wait for this one
            in the next collective.
    """

    def __init__(self, copied: Callable[[dict], dict | None]):
        """
        Args:
            copied: copies a file's state, or returns None to have it written at once.
        """
        self.error: Exception | None = None
        self._copied = copied
        self._copies: list[tuple[dict, Path]] = []

    def save(self, state: dict, path: Path) -> None:
        if (copy := self._copied(state)) is None:
            self._write(state, path)
        else:
            self._copies.append((copy, path))

    def write_copies(self) -> None:
        """May run in a thread."""
        for copy, path in self._copies:
            self._write(copy, path)
        self._copies.clear()

    def _write(self, state: dict, path: Path) -> None:
        try:
            write_synced(state, path)
        except (OSError, RuntimeError) as error:
            # torch raises its own error for a full disk, and a pickled exception loses its cause.
            self.error = self.error or disk_full(error) or error


class ShardFiles(TorchCheckpointEngine):
    """Gives the files of a checkpoint to its `Shards`.

    Attributes:
        shards: of the checkpoint that DeepSpeed saves.
    """

    shards: Shards

    def save(self, state_dict: dict, path: str) -> None:
        self.shards.save(state_dict, Path(path))


def save_shards(
    engine: DeepSpeedEngine,
    folder: Path,
    client_state: dict[str, Any],
    exclude_frozen_parameters: bool,
    copied: Callable[[dict], dict | None],
) -> Shards:
    """Writes the files of every rank of a checkpoint, or copies them. All ranks must call it.

    Args:
        engine: DeepSpeed's, with `ShardFiles` as its `checkpoint_engine`.
        folder: an existing one, the same on all ranks.
        client_state: Lightning's, the same on all ranks.
        exclude_frozen_parameters: omit the parameters that are not trained.
        copied: as for `Shards`.
    """
    # ds_to_universal needs it for a checkpoint of ZeRO-1 or 2.
    version = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    client_state = {**client_state, UNIVERSAL_CHECKPOINT_INFO: version}
    shards = engine.checkpoint_engine.shards = Shards(copied)
    try:
        engine.save_checkpoint(str(folder), TAG, client_state, False, exclude_frozen_parameters)
    except OSError as error:
        # Only the first rank copies DeepSpeed's scripts, before a last barrier.
        shards.error = shards.error or error
        distributed.barrier()
    return shards


def first_error(error: Exception | None) -> Exception | None:
    """The error of a rank that failed, on all ranks; None if there is none. All ranks must call it."""
    errors: list[Exception | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(errors, error)
    return next((error for error in errors if error is not None), None)


@contextmanager
def safe_loading() -> Iterator[None]:
    """Restricts DeepSpeed's loading to tensors and plain data: its own calls would run any code in a file."""
    before = {name: os.environ.pop(name, None) for name in _LOADING}
    os.environ[_LOADING[0]] = "1"
    try:
        with torch.serialization.safe_globals(_CLASSES):
            yield
    finally:
        os.environ.pop(_LOADING[0])
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The parameters of a ZeRO checkpoint by name: float32, on the CPU."""
    with safe_loading():
        return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)


def read_client_state(folder: Path) -> dict[str, Any]:
    """The state in a ZeRO checkpoint that Lightning and DeepSpeed saved beside the tensors."""
    file = min((folder / TAG).glob("*_model_states.pt"))
    with safe_loading():
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


def check_folder(path: Path) -> None:
    """
    Raises:
        InputError: the checkpoint is of another strategy.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not of a run with ZeRO: resume it with the strategy that wrote it")


def check_resumable(path: Path, stage: int, world_size: int) -> None:
    """
    Raises:
        InputError: the checkpoint is of another strategy, ZeRO stage or number of ranks.
    """
    check_folder(path)
    if is_universal(path):
        of_stage_3 = any((path / TAG).glob("zero_pp_rank_*_model_states.pt"))
        if of_stage_3 != (stage == 3):
            stages = "ZeRO-3" if of_stage_3 else "ZeRO-1 or 2"
            raise InputError(f"{path} is of {stages}, the strategy's stage is {stage}: set the checkpoint's stage")
        return
    if (written := read_written(path)) is None:
        return
    if written.stage != stage:
        raise InputError(
            f"{path} is of ZeRO-{written.stage}, the strategy's stage is {stage}: set stage {written.stage}"
        )
    if written.world_size != world_size:
        universal = path.with_suffix(".universal")
        raise InputError(
            f"{path} was written by {written.world_size} processes, and this run has {world_size}. Run\n"
            f"  python -m deepspeed.checkpoint.ds_to_universal --input_folder {path / TAG} "
            f"--output_folder {universal / TAG}\n  and resume with --ckpt_path {universal}"
        )
