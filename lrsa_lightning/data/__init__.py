"""Long-context question answering data: sources, extension, order, batches."""

from lrsa_lightning.data.datamodule import LongContextDataModule

__all__ = ["LongContextDataModule"]
