"""Lightning's strategies for several devices, in which groups of ranks may share sequences."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.data.sampler import accumulation_steps
from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel, ShardedAttention
from lrsa_lightning.errors import InputError


class SequenceParallelStrategy:
    """Mixed in before a Lightning strategy of several processes.

    Attributes:
        sequence_parallel: what the user chose.
        sharding: what the attention mode has become; None before the model is configured, and where nothing is shared.
    """

    sharding: ShardedAttention | None = None

    def __init__(self, *args, sequence_parallel: SequenceParallel | None = None, **kwargs):
        """
        Args:
            sequence_parallel: how ranks share sequences, or a mapping of its fields; not at all when None.

        Raises:
            InputError: a size or kind that does not exist.
        """
        super().__init__(*args, **kwargs)
        # A mapping is not in the annotation: the command checks one by the fields.
        self.sequence_parallel = SequenceParallel.of(sequence_parallel)

    def setup_environment(self) -> None:
        """Refuses an illegal degree as soon as the number of processes is known."""
        super().setup_environment()
        self.sequence_parallel.check_world(self.world_size)

    @cached_property
    def sequence_group(self) -> SequenceGroup:
        """The ranks that share this one's sequences; made by all ranks together, at its first use."""
        return SequenceGroup.of_world(self.sequence_parallel.size)

    @property
    def data_parallel_size(self) -> int:
        """Groups of ranks that read different samples."""
        return self.world_size // self.sequence_parallel.size

    @property
    def data_parallel_rank(self) -> int:
        return self.global_rank // self.sequence_parallel.size

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return {"num_replicas": self.data_parallel_size, "rank": self.data_parallel_rank}

    def check_sharding(self, mode: AttentionMode, config, seq_len: int) -> None:
        """
        Raises:
            InputError: this model and length cannot be shared by so many ranks; it names the legal numbers.
        """
        if (size := self.sequence_parallel.size) > 1:
            self.sequence_parallel.shard(mode, config, seq_len, SequenceGroup(0, size))

    def parallelize(self, mode: AttentionMode, model, seq_len: int) -> None:
        """Makes a model, which has the mode installed, one of shared sequences; called when the model is configured."""
        if self.sequence_parallel.size > 1:
            group = self.sequence_group
            self.sharding = self.sequence_parallel.shard(mode, model.config, seq_len, group)
            self.sharding.install(model)


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies that train something else than the run says, before anything is read.

    Raises:
        InputError: Lightning's own where there is one of ours, or settings that ZeRO cannot follow.
    """
    strategy = trainer.strategy
    for theirs, ours, name in (
        (DeepSpeedStrategy, ZeroStrategy, "sp_deepspeed"),
        (ModelParallelStrategy, SPModelParallelStrategy, "sp_fsdp2"),
    ):
        if isinstance(strategy, theirs) and not isinstance(strategy, ours):
            raise InputError(f"trainer.strategy is Lightning's own {type(strategy).__name__}: take {name}")
    if not isinstance(strategy, ZeroStrategy):
        return
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise InputError(
            "DeepSpeed clips by the norm alone: set trainer.gradient_clip_algorithm to norm, or leave it out"
        )
    if trainer.training:
        strategy.check_accumulation(_micro_batches(trainer))


def _micro_batches(trainer: Trainer) -> int:
    """Of an optimizer step on one rank: the datamodule tells the trainer when its samples are prepared, not before."""
    data = trainer.datamodule
    if not isinstance(data, LongContextDataModule):
        return trainer.accumulate_grad_batches
    return accumulation_steps(data.global_batch_size, data.micro_batch_size, trainer.strategy.data_parallel_size)


class SPDDPStrategy(SequenceParallelStrategy, DDPStrategy):
    """Lightning's DDP: each device has the whole model and its optimizer.

    The strategy `sp_ddp`.
    """


class SPDeepSpeedStrategy(SequenceParallelStrategy, ZeroStrategy):
    """DeepSpeed ZeRO 1, 2 or 3 on CUDA GPUs, Ascend NPUs or CPUs, where ranks may share sequences.

    Arguments are Lightning's for DeepSpeed: stage, offload_optimizer, offload_parameters, config and so on, and
    `sequence_parallel: {size, kind}`. trainer.strategy takes the name sp_deepspeed for ZeRO-2.
    """


class SPModelParallelStrategy(SequenceParallelStrategy, ModelParallelStrategy):
    """Lightning's (experimental) ModelParallelStrategy with FSDP2 over all ranks; its tensor-parallel mesh dimension
    is the group of ranks that share sequences.

    Against DeepSpeed: no offload, no ZeRO-1 and 2, but checkpoints of one file, which any number of ranks can load. The
    strategy `sp_fsdp2`.
    """

    def __init__(self, sequence_parallel: SequenceParallel | None = None, process_group_backend: str | None = None):
        """
        Args:
            sequence_parallel: how ranks share sequences; not at all when None.
            process_group_backend: nccl, gloo, hccl; by the device when None.
        """
        super().__init__(
            sequence_parallel=sequence_parallel,
            # Folders of parts are written past CheckpointIO, which makes checkpoints whole or absent.
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        size = self.sequence_parallel.size
        # The mesh is made within; Lightning knows the number of processes, not yet as the world's size.
        self.sequence_parallel.check_world(self.num_nodes * self.num_processes)
        self._tensor_parallel_size = size
        self._data_parallel_size = self.num_nodes * self.num_processes // size
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain data only, whatever ``weights_only`` says: Lightning leaves it out."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)

    @property
    def sequence_group(self) -> SequenceGroup:
        mesh = self.device_mesh["tensor_parallel"]
        return SequenceGroup(mesh.get_local_rank(), mesh.size(), mesh.get_group())

    def parallelize(self, mode: AttentionMode, model, seq_len: int) -> None:
        """Shares the sequences, then the weights: each layer's are gathered when it runs, and freed again."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().parallelize(mode, model, seq_len)
        mesh = self.device_mesh["data_parallel", "tensor_parallel"]._flatten("ranks")
        for layer in model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        # Embedding, last norm and head, which may share a weight, are the module's, whose steps call each by itself.
        fully_shard(self.lightning_module, mesh=mesh)
        for step in ("training_step", "validation_step", "as_forward"):
            register_fsdp_forward_method(self.lightning_module, step)
