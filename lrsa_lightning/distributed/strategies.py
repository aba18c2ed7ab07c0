"""Lightning's strategies for several devices, with sequence parallelism."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lrsa_lightning.attention.architecture import length_dependent_rope
from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.hybrid import check_full_attention
from lrsa_lightning.checkpoints.host_copy import HostCopies
from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel, ShardedAttention
from lrsa_lightning.errors import InputError
from lrsa_lightning.precision import MasterPrecision


class SequenceParallelStrategy:
    """Mixed in before a Lightning strategy of several processes.

    Attributes:
        sequence_parallel: the user's settings.
        sharding: the attention of this rank's tokens; None at degree 1, and before the model is configured.
    """

    sharding: ShardedAttention | None = None

    def __init__(self, *args, sequence_parallel: SequenceParallel | None = None, **kwargs):
        """
        Args:
            sequence_parallel: how the ranks of a group divide each sequence, or a mapping of its fields; None divides
                no sequence.

        Raises:
            InputError: the size or the kind does not exist.
        """
        super().__init__(*args, **kwargs)
        # The annotation names no mapping, so that the command checks one against the fields.
        self.sequence_parallel = SequenceParallel.of(sequence_parallel)

    def setup_environment(self) -> None:
        """Refuses a degree that does not divide the number of processes, as soon as that is known."""
        super().setup_environment()
        self.sequence_parallel.check_world(self.world_size)

    @cached_property
    def sequence_group(self) -> SequenceGroup:
        """This rank's group. All ranks must use it for the first time together, since that makes the groups."""
        return SequenceGroup.of_world(self.sequence_parallel.size)

    @property
    def data_parallel_size(self) -> int:
        """The number of sequence-parallel groups; each reads other samples."""
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
            InputError: the degree is impossible for this model and length; the message names the possible degrees. Or a
                layer of the model is not full attention, or its RoPE looks at the length.
        """
        if (size := self.sequence_parallel.size) > 1:
            text = config.get_text_config(decoder=True)
            check_full_attention(text, seq_len)
            if rope_type := length_dependent_rope(text):
                raise InputError(
                    f"sequence parallelism cannot run with rope_type {rope_type!r}: its angles depend on the last "
                    "position, and each rank has another. Use default, linear, yarn or llama3, or set "
                    "sequence_parallel.size to 1."
                )
            self.sequence_parallel.shard(mode, config, seq_len, SequenceGroup(0, size))

    def parallelize(self, mode: AttentionMode, model, seq_len: int) -> None:
        """Installs the attention of this rank's tokens in a model that has the mode installed."""
        if self.sequence_parallel.size > 1:
            self.sharding = self.sequence_parallel.shard(mode, model.config, seq_len, self.sequence_group)
            self.sharding.install(model)


class SPDDPStrategy(SequenceParallelStrategy, DDPStrategy):
    """Lightning's DDP: each device has the complete model and its optimizer.

    The strategy `sp_ddp`.
    """


class SPDeepSpeedStrategy(SequenceParallelStrategy, ZeroStrategy):
    """DeepSpeed ZeRO 1, 2 or 3 on CUDA GPUs, Ascend NPUs or CPUs, with sequence parallelism.

    Arguments are those of Lightning's DeepSpeedStrategy (stage, offload_optimizer, offload_parameters, config, ...) and
    `sequence_parallel: {size, kind, zigzag}`. The strategy `sp_deepspeed` is ZeRO-2.
    """


class SPModelParallelStrategy(SequenceParallelStrategy, ModelParallelStrategy):
    """Lightning's (experimental) ModelParallelStrategy with FSDP2 over all ranks.

    The tensor-parallel dimension of its mesh is the sequence-parallel group. Compared with DeepSpeed it has no offload
    and no ZeRO-1 or 2, but its checkpoints are single files that any number of ranks can load. The strategy `sp_fsdp2`.
    """

    def __init__(self, sequence_parallel: SequenceParallel | None = None, process_group_backend: str | None = None):
        """
        Args:
            sequence_parallel: how the ranks of a group divide each sequence; None divides no sequence.
            process_group_backend: nccl, gloo or hccl; by the device when None.
        """
        super().__init__(
            sequence_parallel=sequence_parallel,
            # Distributed checkpoints would bypass CheckpointIO, which writes atomically.
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        # Lightning makes the mesh in this method, before it sets world_size.
        size, world_size = self.sequence_parallel.size, self.num_nodes * self.num_processes
        self.sequence_parallel.check_world(world_size)
        self._tensor_parallel_size, self._data_parallel_size = size, world_size // size
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain data only, whatever ``weights_only`` says: Lightning does not pass it on."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)

    def host_copies(self) -> HostCopies:
        """On a device, the complete state on the CPU belongs to the checkpoint alone: it was gathered for it."""
        return HostCopies(are_gathered=self.root_device.type != "cpu")

    @property
    def sequence_group(self) -> SequenceGroup:
        mesh = self.device_mesh["tensor_parallel"]
        return SequenceGroup(mesh.get_local_rank(), mesh.size(), mesh.get_group())

    def parallelize(self, mode: AttentionMode, model, seq_len: int) -> None:
        """Divides the sequences, then the weights: FSDP2 gathers each layer's weights when it runs and frees them."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        super().parallelize(mode, model, seq_len)
        settings = {"mesh": self.device_mesh["data_parallel", "tensor_parallel"]._flatten("ranks")}
        if isinstance(self.precision_plugin, MasterPrecision):
            # Its default casts inputs too: the batch's float32 weights of the loss would lose digits.
            settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layer in model.get_decoder().layers:
            fully_shard(layer, **settings)
        # Embedding, last norm and head belong to the module: they may have tied weights, and its steps call each.
        fully_shard(self.lightning_module, **settings)
        for step in ("training_step", "validation_step", "as_forward"):
            register_fsdp_forward_method(self.lightning_module, step)
