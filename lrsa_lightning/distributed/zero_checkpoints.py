"""Checkpoints under ZeRO: folders that all ranks write together, complete or absent."""

import functools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lrsa_lightning.checkpoints.atomic_files import (
    AtomicFiles,
    Written,
    is_universal,
    make_empty,
    partial_of,
    publish,
    remove,
    saved_without,
)
from lrsa_lightning.checkpoints.host_copy import HostCopies
from lrsa_lightning.checkpoints.plain_state import plain_checkpoint
from lrsa_lightning.distributed.zero_config import stage_of
from lrsa_lightning.files.disk import disk_full

if TYPE_CHECKING:
    from lrsa_lightning.distributed.zero_files import Shards


class ZeroCheckpoints(DeepSpeedStrategy):
    """Lightning's strategy with atomic checkpoint folders, loaded as tensors and plain data only."""

    def host_copies(self) -> HostCopies:
        """Each rank copies its own part."""
        return HostCopies(processes=self.num_processes)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: None = None) -> None:
        """Writes a folder beside its place. The first rank moves it there once the files of all ranks are on the disk.

        On a full disk it sets `checkpoint_io.disk_full` and raises nothing, as for checkpoints of one file. In the
        background, each rank's thread writes its files, and `checkpoint_io.finish` moves the folder: all ranks must
        call it.

        Raises:
            OSError: a rank cannot write. All ranks raise it.
            InputError: as for checkpoints of one file. All ranks raise it.
        """
        from lrsa_lightning.distributed import zero_files

        path = Path(self.broadcast(str(filepath)))
        state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        state, left_out = plain_checkpoint(state)
        files = self.checkpoint_io if isinstance(self.checkpoint_io, AtomicFiles) else AtomicFiles()
        files.disk_full = None
        if error := self._on_first_rank(make_empty, partial_of(path)):
            self._give_up(files, path, error)
            return
        # What is left out ends the run, so there is nothing to go on with during the write.
        wait = bool(left_out) or not files.is_in_background
        shards = zero_files.save_shards(
            self.deepspeed_engine,
            partial_of(path),
            state,
            self.exclude_frozen_parameters or not self.lightning_module.strict_loading,
            _none if wait else files.copied,
        )
        written = Written(state["global_step"], self.world_size, stage_of(self.config))
        conclude = functools.partial(self._publish, files, path, written, shards)
        files.begin(shards.write_copies, conclude, wait)
        if left_out and files.disk_full is None:
            raise saved_without(path, left_out)

    def _publish(
        self, files: AtomicFiles, path: Path, written: Written, shards: "Shards", error: Exception | None
    ) -> None:
        """Moves a folder to its place once the files of all ranks are on the disk. All ranks must call it."""
        from lrsa_lightning.distributed.zero_files import first_error

        error = first_error(error or shards.error)
        if error := error or self._on_first_rank(publish, partial_of(path), path, written):
            self._give_up(files, path, error)

    def _give_up(self, files: AtomicFiles, path: Path, error: Exception) -> None:
        if self.is_global_zero:
            with suppress(OSError):
                remove(partial_of(path))
        files.disk_full = disk_full(error)
        if files.disk_full is None or files is not self.checkpoint_io:
            raise error

    def _on_first_rank(self, function: Callable, *arguments) -> OSError | None:
        """Calls a function on the first rank, for which the others wait. Returns its error on all ranks."""
        error = None
        if self.is_global_zero:
            try:
                function(*arguments)
            except OSError as caught:
                error = caught
        return self.broadcast(error)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain data only, whatever ``weights_only`` says.

        Raises:
            InputError: the checkpoint is of another strategy, ZeRO stage or number of ranks.
        """
        from lrsa_lightning.distributed import zero3, zero_files

        path = Path(checkpoint_path)
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            zero_files.check_resumable(path, stage_of(self.config), self.world_size)
        else:
            zero_files.check_folder(path)
            if self.zero_stage_3:
                # DeepSpeed would take the weights from the optimizer's states, and there is no optimizer here.
                weights = zero_files.read_weights(path) if self.is_global_zero else {}
                self._restore_zero_state({"state_dict": weights}, strict=True)
                return zero_files.read_client_state(path)
        engine, groups = self.deepspeed_engine, nullcontext()
        engine._config.load_universal_checkpoint = is_universal(path)
        if is_universal(path) and self.zero_stage_3:
            groups = zero3.groups_kept_apart(engine.optimizer.optimizer)
        with zero_files.safe_loading(), groups:
            return super().load_checkpoint(path, weights_only=True)


def _none(_: Any) -> None:
    """Copies nothing."""
