"""Many devices: sequences shared by groups of ranks, and the strategies that carry them."""

from lrsa_lightning.distributed.ddp import SPDDPStrategy
from lrsa_lightning.distributed.deepspeed import SPDeepSpeedStrategy
from lrsa_lightning.distributed.fsdp2 import SPModelParallelStrategy
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel, ShardedAttention

__all__ = [
    "SPDDPStrategy",
    "SPDeepSpeedStrategy",
    "SPModelParallelStrategy",
    "SequenceGroup",
    "SequenceParallel",
    "ShardedAttention",
]
STRATEGIES = {"sp_ddp": SPDDPStrategy, "sp_deepspeed": SPDeepSpeedStrategy, "sp_fsdp2": SPModelParallelStrategy}
