"""A decoder's layers by fused operators: Liger's and quack's on CUDA, torch_npu's on NPU."""

from lrsa_lightning.fused.layers import FusedLayers, fuse

__all__ = ["FusedLayers", "fuse"]
