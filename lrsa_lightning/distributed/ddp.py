"""Whole copies of the model on every device, sequences shared."""

from lightning.pytorch.strategies import DDPStrategy

from lrsa_lightning.distributed.strategy import SequenceParallelStrategy


class SPDDPStrategy(SequenceParallelStrategy, DDPStrategy):
    """Lightning's DDP, in which groups of ranks may share sequences: for models that fit a device with their optimizer.

    The strategy `sp_ddp`.
    """
