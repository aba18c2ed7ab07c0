"""Many devices: sequence parallelism, and the strategies that divide the model.

Importing this package registers the strategies with Lightning, under the names that YAML uses.
"""

from lightning.pytorch.strategies import StrategyRegistry

from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.sharded_attention import ShardedAttention
from lrsa_lightning.distributed.strategies import SPDDPStrategy, SPDeepSpeedStrategy, SPModelParallelStrategy

__all__ = [
    "STRATEGIES",
    "SPDDPStrategy",
    "SPDeepSpeedStrategy",
    "SPModelParallelStrategy",
    "SequenceGroup",
    "SequenceParallel",
    "ShardedAttention",
]
STRATEGIES = {"sp_ddp": SPDDPStrategy, "sp_deepspeed": SPDeepSpeedStrategy, "sp_fsdp2": SPModelParallelStrategy}
for _name, _strategy in STRATEGIES.items():
    StrategyRegistry.register(_name, _strategy, description=_strategy.__doc__.splitlines()[0])
