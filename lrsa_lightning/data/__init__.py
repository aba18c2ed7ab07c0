"""Long-context question answering data: sources, augmentation, order, batches."""

from lrsa_lightning.data.datamodule import LongContextDataModule

__all__ = ["LongContextDataModule"]
