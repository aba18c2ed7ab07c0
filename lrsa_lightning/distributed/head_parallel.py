"""Generation by several ranks together: each holds the cache of its own heads, and attends with them alone.

What ranks hold alike stays small, since prompts are read piece by piece; the cache is what grows with the prompt.

Shape suffixes: B batch, H query heads, h those of this rank, G KV heads, g those of this rank (or copies), n new
tokens, T tokens held, D head size, P ranks.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import Cache

from lrsa_lightning.attention.base import AttentionMode, set_attention
from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.distributed.group import SequenceGroup
from lrsa_lightning.distributed.sequence_parallel import shared_key
from lrsa_lightning.distributed.ulysses import LayerOfHeads, legal_sizes
from lrsa_lightning.errors import InputError


class HeadParallel(AttentionMode):
    """Any attention mode over a cache whose heads are dealt to the ranks of a group.

    All ranks read the same tokens. Outputs are gathered, never summed: the ranks go on with the same bits, and so
    choose the same tokens and end at the same step.
    """

    def __init__(self, mode: AttentionMode, config, group: SequenceGroup):
        """
        Args:
            mode: the attention mode.
            config: the model's.
            group: the ranks, which must all make the same forward passes.

        Raises:
            InputError: the heads cannot be dealt to so many ranks.
        """
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        legal = legal_sizes(heads, kv_heads)
        if group.size not in legal:
            raise InputError(
                f"{heads} query and {kv_heads} KV heads can be dealt to {', '.join(map(str, legal))} ranks, "
                f"not to {group.size}"
            )
        self.mode, self.group = mode, group
        self.needs_padding_mask = mode.needs_padding_mask
        # With fewer KV heads than ranks neighbours hold copies of one.
        self.parts = min(kv_heads, group.size)
        self._queries = _share(heads, group.rank, group.size)
        self._keys = _share(kv_heads, group.rank * self.parts // group.size, self.parts)
        self._inner = mode.for_heads(self._keys.start)

    def registry_key(self) -> str:
        return shared_key("heads", self.mode, self.group)

    def check(self, config) -> None:
        self.mode.check(config)

    def make_cache(self, config, lengths: Sequence[int] | None = None) -> "CacheOfHeads":
        return CacheOfHeads(self._inner.make_cache(config, lengths), self._keys, self.parts)

    def install(self, model) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        # The mode itself, not the one of these heads: it may be another model's, under the same name.
        self.mode.install(model)
        AttentionInterface.register(self.registry_key(), self._transformers_attention)
        AttentionMaskInterface.register(self.registry_key(), ALL_MASK_ATTENTION_FUNCTIONS[self.mode.registry_key()])
        set_attention(model, self.registry_key())

    def attention_function(self) -> Callable:
        return self._transformers_attention

    def _transformers_attention(self, module, q_BHnD: Tensor, k_BgTD: Tensor, v_BgTD: Tensor, mask, **kwargs):
        if k_BgTD.shape[1] != self._keys.stop - self._keys.start:
            raise ValueError("ranks that share heads need the cache that their mode makes: HeadParallel.make_cache")
        q_BhnD = q_BHnD[:, self._queries]
        layer = LayerOfHeads(module, q_BhnD.shape[1] // k_BgTD.shape[1], self.mode)
        out_BnhD, _ = self._inner.attention_function()(layer, q_BhnD, k_BgTD, v_BgTD, mask, **kwargs)
        of_ranks_PBnhD = self.group.all_gather(out_BnhD)
        return of_ranks_PBnhD.permute(1, 2, 0, 3, 4).flatten(2, 3), None


class CacheOfHeads(Cache):
    """A mode's cache, of some KV heads.

    Attributes:
        parts: how many such caches make up the whole one.
    """

    def __init__(self, cache: Cache, heads: slice, parts: int):
        """
        Args:
            cache: an empty one.
            heads: of the KV heads, those that it is to hold.
            parts: how many such caches make up the whole one.
        """
        super().__init__(layers=cache.layers)
        self.parts = parts
        self._cache, self._heads = cache, heads

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Keys and values of these heads, [B, g, T, D], given the new tokens' of all, [B, G, n, D]."""
        own = key_states[:, self._heads], value_states[:, self._heads]
        return self._cache.update(*own, layer_idx, *args, **kwargs)


def whole_cache_bytes(cache: Cache) -> int:
    """Bytes of the keys and values of all heads over all layers, wherever they lie."""
    return cache_bytes(cache) * (cache.parts if isinstance(cache, CacheOfHeads) else 1)


def most_ranks(config, size: int) -> int:
    """The greatest part of ``size`` ranks, neighbours, that the model's heads can be dealt to."""
    legal = legal_sizes(config.num_attention_heads, config.num_key_value_heads)
    return max(part for part in legal if size % part == 0)


def _share(heads: int, rank: int, size: int) -> slice:
    return slice(rank * heads // size, (rank + 1) * heads // size)
