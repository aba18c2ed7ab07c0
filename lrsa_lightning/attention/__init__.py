"""Attention modes and the executions of the LRSA rule."""

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.attention.vanilla import Vanilla

__all__ = ["LRSA", "AttentionMode", "Vanilla"]
