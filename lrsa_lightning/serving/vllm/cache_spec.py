"""The KV cache of a compressed layer, as vLLM's block pool sees it: what a request holds, and what it gives back."""

from dataclasses import dataclass

from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.serving.vllm.layout import BlockLayout


@dataclass(frozen=True, kw_only=True)
class LagSpec(AttentionSpec):
    """A layer whose chunks are compressed.

    It is no FullAttentionSpec: vLLM would put it into one group with layers that are left uncompressed.

    Attributes:
        rule: of the layer, the same on all ranks.
        step_tokens: most tokens of a request that are scheduled and not yet processed.
    """

    rule: LagRule
    step_tokens: int

    @property
    def layout(self) -> BlockLayout:
        """Where the tokens are."""
        return BlockLayout(self.rule, self.block_size)

    @property
    def prefix_cacheable(self) -> bool:
        """A block's content depends on the tokens after it: no other request can take it."""
        return False

    def max_memory_usage_bytes(self, vllm_config) -> int:
        """Bytes that the longest request holds at most."""
        return self.page_size_bytes * self.most_blocks(vllm_config.model_config.max_model_len)

    def most_blocks(self, num_tokens: int) -> int:
        """Blocks that a request holds at most on its way to so many tokens."""
        return self.layout.most_blocks(num_tokens, self.step_tokens)


class LagManager(SingleTypeKVCacheManager):
    """Gives blocks of compressed chunks back to the pool, during prefill and decoding."""

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, *args, apply_admission_cap: bool = False, **kwargs
    ) -> int:
        """See the base class. A request may start if what it will hold at once fits."""
        needed = super().get_num_blocks_to_allocate(request_id, num_tokens, *args, **kwargs)
        return min(needed, self.kv_cache_spec.most_blocks(num_tokens)) if apply_admission_cap else needed

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Frees the blocks of all chunks that are compressed once so many tokens have been queries."""
        layout, blocks = self.kv_cache_spec.layout, self.req_to_blocks.get(request_id)
        for chunk in reversed(range(layout.compressed_after(processed_computed_tokens))):
            freed = layout.freed_blocks(chunk)
            if not blocks or not freed or blocks[freed.start] == self._null_block:
                return
            self._remove_blocks_in_range(request_id, freed.start, freed.stop)

    @classmethod
    def find_longest_cache_hit(cls, block_hashes, max_length: int, kv_cache_group_ids: list[int], *_, **__):
        """None: see `LagSpec.prefix_cacheable`."""
        return tuple([] for _ in kv_cache_group_ids), 0


# The registry takes in the built-in kinds when it is first asked, and only if it is empty then.
KVCacheSpecRegistry.check_kv_cache_spec_registry({})
KVCacheSpecRegistry.register(LagSpec, LagManager)
