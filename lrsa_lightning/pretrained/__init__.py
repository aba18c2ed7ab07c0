"""A transformers decoder from a hub id or a folder: its configuration, RoPE, weights, quantisation and adapter."""

from lrsa_lightning.pretrained.decoder import load_config, load_model

__all__ = ["load_config", "load_model"]
