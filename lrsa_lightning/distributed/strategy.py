"""What a Lightning strategy needs so that groups of its ranks share sequences."""

from functools import cached_property

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel, ShardedAttention


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
            sequence_parallel: how ranks share sequences; not at all when None.
        """
        super().__init__(*args, **kwargs)
        self.sequence_parallel = sequence_parallel or SequenceParallel()

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
