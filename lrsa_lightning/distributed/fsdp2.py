"""FSDP2: every weight, gradient and optimizer state shared by all ranks, through torch's own DTensor."""

from lightning.pytorch.strategies import ModelParallelStrategy

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.strategy import SequenceParallelStrategy


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
