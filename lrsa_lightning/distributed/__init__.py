"""Many devices: sequences shared by groups of ranks, and the strategies that carry them."""

from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel, ShardedAttention

__all__ = ["SequenceGroup", "SequenceParallel", "ShardedAttention"]
