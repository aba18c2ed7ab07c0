"""How to read the keys that a layer of the cache returns.

Shape suffixes: B batch, G KV heads, T tokens held, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.lagkv import Chunking
from lrsa_lightning.errors import InputError

WAY_OUT = "Use `with mode.installed(model):` around it, and the cache that this mode makes (mode.make_cache)"


@dataclass
class CacheView:
    """How to read the keys a layer's `update` returns: [compact ; raw], for queries that are the last tokens.

    transformers hands those keys to the attention function untouched, so the view rides on them as the attribute
    `lrsa_view`. It does not hold them: keys that hold themselves would wait for the garbage collector, step after step.

    Attributes:
        mode: the `LRSA` that must read them.
        num_keys: T.
        compact_len: keys in front that are sink or kept tokens.
        raw_start: position of the first key after them.
        padding: int64 [B], unused keys in front of each row; None when all rows are equally long.
        taken: whether they have been read.
    """

    mode: Any
    num_keys: int
    compact_len: int
    raw_start: int
    padding: Tensor | None = None
    taken: bool = False

    def take(self, mode: Any) -> None:
        """Notes that ``mode`` reads the keys.

        Raises:
            InputError: it follows another rule than the cache.
        """
        if mode is not self.mode and mode.registry_key() != self.mode.registry_key():
            raise InputError(f"this cache follows {self.mode!r}, but the model runs {mode!r}. {WAY_OUT}")
        self.taken = True

    @property
    def end(self) -> int:
        """Tokens seen, the newest queries included."""
        return self.raw_start + self.num_keys - self.compact_len

    def newest_sees_all(self, chunking: Chunking) -> bool:
        """Whether the last query may see every key: one that completes a chunk may not see what its chunk keeps."""
        chunk = chunking.chunk_of(self.end - 1)
        return self.compact_len <= chunking.compact_visible(chunk) and self.raw_start >= chunking.raw_visible(chunk)

    def split(self, z_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """The compact and the raw part of the keys, or of their values."""
        return z_BGTD[:, :, : self.compact_len], z_BGTD[:, :, self.compact_len :]

    def row_mask(self) -> Tensor:
        """True at the keys of each row, False at the padding in front of them: [B, 1, 1, T]."""
        places = torch.arange(self.num_keys, device=self.padding.device)
        return (places >= self.padding[:, None])[:, None, None]
