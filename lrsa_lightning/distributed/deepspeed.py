"""DeepSpeed's ZeRO on any device: CUDA GPUs, Ascend NPUs, and CPUs for tests."""

import os
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import _DEEPSPEED_AVAILABLE
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lrsa_lightning.checkpoint_files import (
    AtomicFiles,
    Written,
    is_universal,
    make_empty,
    partial_of,
    publish,
    remove,
    saved_without,
)
from lrsa_lightning.disk import disk_full
from lrsa_lightning.distributed.zero_config import (
    check_accumulation,
    check_compiler,
    check_config,
    check_precision,
    stage_of,
    sum_gradients_in_float32,
)
from lrsa_lightning.errors import InputError
from lrsa_lightning.plain_state import plain_checkpoint
from lrsa_lightning.ranges import checked


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's strategy without its demand for CUDA, with weights that are read once and checkpoints that are whole.

    bf16-mixed and bf16-true are the same here: weights in bf16, the optimizer's copy in float32.
    """

    @checked
    def __init__(self, *args, stage: Literal[1, 2, 3] = 2, **kwargs):
        """
        Args:
            stage: 1 divides the optimizer's states over the ranks, 2 the gradients too, 3 the weights too.

        Raises:
            InputError: DeepSpeed is not installed, or its configuration says what a setting of the run says.
        """
        if not _DEEPSPEED_AVAILABLE:
            raise InputError("the strategy sp_deepspeed needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'")
        # DeepSpeed chooses its device when it is first imported, by what is installed rather than by what is there.
        os.environ.setdefault("DS_ACCELERATOR", _device_type())
        super().__init__(*args, stage=stage, **kwargs)
        check_config(self.config)

    def _load_config(self, config: str | Path | dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            # A copy, as the settings of the run are added to it: the user may give a dictionary to two strategies.
            return deepcopy(super()._load_config(config))
        except (MisconfigurationException, OSError, ValueError) as error:
            raise InputError(f"the strategy's DeepSpeed config {config} cannot be read: {error}") from error

    def setup_environment(self) -> None:
        """Goes past Lightning's refusal of all but CUDA.

        Raises:
            InputError: DeepSpeed has been set up for another device, or this one lacks what the configuration needs.
        """
        import deepspeed

        device = self.root_device.type
        if (chosen := deepspeed.get_accelerator().device_name()) != device:
            raise InputError(f"DeepSpeed runs on {chosen}, the trainer on {device}: set DS_ACCELERATOR={device}")
        has_fp16 = deepspeed.get_accelerator().is_fp16_supported()
        check_precision(self.config, self.precision_plugin.precision, has_fp16)
        check_compiler(self.config)
        if device == "cpu":
            # DeepSpeed tells processes apart by device index, which CPUs do not have.
            self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices))]
            # Its own collectives would be compiled, for a minute; gloo has all that is needed.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        DDPStrategy.setup_environment(self)

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self.root_device.type == "npu":
            return "hccl"  # Lightning would take gloo
        return super()._get_process_group_backend()

    def _auto_select_batch_size(self) -> int:
        """For DeepSpeed's throughput alone; Lightning's would make the data loader once more to learn it."""
        return getattr(self.lightning_module.trainer.datamodule, "micro_batch_size", 1)

    def check_accumulation(self, micro_batches: int) -> None:
        """
        Args:
            micro_batches: of an optimizer step on one rank.

        Raises:
            InputError: their gradients would be added up in 16 bits without the user's wish.
        """
        check_accumulation(self.config, self.precision_plugin.precision, micro_batches)

    def _format_config(self) -> None:
        sum_gradients_in_float32(self.config)
        super()._format_config()
        if self.lightning_module is not None and self.lightning_module.trainer.training:
            self.check_accumulation(self.config["gradient_accumulation_steps"])

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Under ZeRO-3 only the first rank reads or draws the weights; the others build the model without memory.

        Lightning's builds it in pieces, which leaves out transformers' initialisation without a word and reads a
        pretrained model on every rank.
        """
        self._init_config_if_needed()
        with torch.device("meta") if self.zero_stage_3 and not self.is_global_zero else nullcontext():
            yield

    def init_deepspeed(self) -> None:
        from lrsa_lightning.distributed.zero_files import ShardFiles

        with warnings.catch_warnings():
            # The module's override measures the norm where DeepSpeed does not, and leaves clipping to it here.
            warnings.filterwarnings("ignore", message="Since DeepSpeed handles gradient clipping")
            super().init_deepspeed()
        self.deepspeed_engine.checkpoint_engine = ShardFiles()

    def _init_optimizers(self) -> tuple[Optimizer, LRSchedulerConfig | None]:
        """Offloaded states are stepped by DeepSpeed's vectorised AdamW, which it compiles at its first use."""
        optimizer, scheduler = super()._init_optimizers()
        if self.config.get("zero_optimization", {}).get("offload_optimizer"):
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            # The groups' dictionaries stay, and with them what the scheduler writes there.
            optimizer = DeepSpeedCPUAdam(optimizer.param_groups, **_arguments(optimizer))
        return optimizer, scheduler

    # The optimizer has seen the parameters' shapes by now, of which ZeRO-3 leaves nothing.
    def _setup_model_and_optimizer(self, model: Module, optimizer, lr_scheduler=None):
        self._partition(model)
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _initialize_deepspeed_inference(self, model: Module) -> None:
        self._partition(model)
        super()._initialize_deepspeed_inference(model)

    def _partition(self, model: Module) -> None:
        if self.zero_stage_3:
            from lrsa_lightning.distributed.zero3 import partition

            partition(model, self.config, self.remote_device, self.root_device)

    def backward(self, closure_loss: Tensor, optimizer, *args, **kwargs) -> Tensor:
        # Lightning has divided by the accumulated micro-batches: a second time would hide gradients from clipping.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: None = None) -> None:
        """Writes a folder beside its place, which the first rank moves there when all ranks' files are on the disk.

        A full disk is noted in `checkpoint_io.disk_full`, as for checkpoints of one file.

        Raises:
            OSError: a rank could not write; on all ranks.
            InputError: as for checkpoints of one file; on all ranks.
        """
        path = Path(self.broadcast(str(filepath)))
        state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        state, left_out = plain_checkpoint(state)
        error = self._save_folder(state, path)
        if error is not None and self.is_global_zero:
            with suppress(OSError):
                remove(partial_of(path))
        full = disk_full(error)
        if isinstance(self.checkpoint_io, AtomicFiles):
            self.checkpoint_io.disk_full = full
        if error is not None and (full is None or not isinstance(self.checkpoint_io, AtomicFiles)):
            raise error
        if error is None and left_out:
            raise saved_without(path, left_out)

    def _save_folder(self, state: dict[str, Any], path: Path) -> Exception | None:
        """The first rank's error or another's, on all ranks."""
        from lrsa_lightning.distributed.zero_files import save_shards

        partial = partial_of(path)
        if error := self._on_first_rank(make_empty, partial):
            return error
        if error := save_shards(self.deepspeed_engine, partial, state, self.exclude_frozen_parameters):
            return error
        written = Written(state["global_step"], self.world_size, self._stage)
        return self._on_first_rank(publish, partial, path, written)

    def _on_first_rank(self, function: Callable, *arguments) -> OSError | None:
        """What went wrong there, told to all ranks, which wait."""
        error = None
        if self.is_global_zero:
            try:
                function(*arguments)
            except OSError as caught:
                error = caught
        return self.broadcast(error)

    @property
    def _stage(self) -> int:
        return stage_of(self.config)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain data only, whatever ``weights_only`` says.

        Raises:
            InputError: the checkpoint is of another strategy, ZeRO stage or number of ranks.
        """
        from lrsa_lightning.distributed.zero3 import groups_apart
        from lrsa_lightning.distributed.zero_files import (
            check_folder,
            check_resumable,
            read_client_state,
            read_weights,
            safe_loading,
        )

        path = Path(checkpoint_path)
        fits = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        check_resumable(path, self._stage, self.world_size) if fits else check_folder(path)
        if self.zero_stage_3 and not fits:
            # DeepSpeed fails without an optimizer, whose shards the weights are taken from.
            self._restore_zero_state({"state_dict": read_weights(path) if self.is_global_zero else {}}, strict=True)
            return read_client_state(path)
        self.deepspeed_engine._config.load_universal_checkpoint = is_universal(path)
        mends = is_universal(path) and self.zero_stage_3
        with safe_loading(), groups_apart(self.deepspeed_engine.optimizer.optimizer) if mends else nullcontext():
            return super().load_checkpoint(path, weights_only)


def _arguments(optimizer: Optimizer) -> dict[str, Any]:
    return {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}


def _device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "npu" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"
