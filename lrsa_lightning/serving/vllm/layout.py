"""Where the tokens of a request are in a paged KV cache under the rule: pure arithmetic of slots and blocks.

Token p is written to slot p of its request: block p // B of the block table, place p % B in it. When a chunk is
compressed, its M kept tokens move, per KV head, within the chunk's own L slots; complete blocks become free. The
compact block table then skips these blocks. So attention is ordinary causal attention over a shorter sequence.

The sink need not be complete blocks. With o = S mod B, each chunk starts at place o of a block. The kept tokens take
the first M - o and the last o slots of their chunk: the last ones share a block with the next chunk, as the sink's do.
Where M = 0, the sink's last o tokens move on from chunk to chunk instead.

Shape suffixes: R requests, W columns of a block table.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lrsa_lightning.attention.rule import LagRule


@dataclass(frozen=True)
class BlockLayout:
    """The rule on blocks of B tokens. L and M are multiples of B.

    Attributes:
        rule: the sizes of the rule.
        block_size: B, tokens of a block.
    """

    rule: LagRule
    block_size: int

    @property
    def offset(self) -> int:
        """o, the place in a block at which each chunk starts."""
        return self.rule.sink_size % self.block_size

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks of an uncompressed chunk."""
        return self.rule.lag_size // self.block_size

    @property
    def kept_blocks(self) -> int:
        """Blocks of a compressed chunk."""
        return self.rule.kept // self.block_size

    def first_block(self, chunk: int) -> int:
        """Column of the block table in which a chunk starts."""
        return self.rule.sink_size // self.block_size + chunk * self.blocks_per_chunk

    def freed_blocks(self, chunk: int) -> range:
        """Columns of the block table that a compressed chunk gives back."""
        return range(self.first_block(chunk) + self.kept_blocks, self.first_block(chunk + 1))

    def compressed_for(self, position: int) -> int:
        """Chunks that are compressed when the token at a position is a query."""
        return max(0, self.rule.chunk_of(position) - 1)

    def compressed_after(self, num_tokens: int) -> int:
        """Chunks that are compressed for certain once so many tokens have been queries."""
        return self.compressed_for(num_tokens - 1) if num_tokens else 0

    def due_chunk(self, position: int) -> int | None:
        """The chunk to compress just before the token at a position becomes a query; None where none is."""
        chunk, inside = divmod(position - self.rule.sink_size, self.rule.lag_size)
        return chunk - 2 if inside == 0 and chunk >= 2 else None

    def held_len(self, num_tokens: int, compressed: int) -> int:
        """Tokens in the compact block table: all but those that compressed chunks dropped."""
        return num_tokens - compressed * (self.rule.lag_size - self.rule.kept)

    def most_blocks(self, num_tokens: int, step_tokens: int) -> int:
        """Most blocks that a request holds on its way to so many tokens, in steps of at most ``step_tokens``.

        A step's tokens need their blocks before it compresses anything. The blocks of the steps before are given back.
        """
        rule = self.rule
        chunk = (num_tokens - step_tokens - rule.sink_size) // rule.lag_size
        ends = {num_tokens, rule.sink_size + chunk * rule.lag_size + step_tokens}
        return max(self._blocks(end, max(0, end - step_tokens)) for end in ends if 0 <= end <= num_tokens)

    def _blocks(self, num_tokens: int, processed: int) -> int:
        dropped = self.compressed_after(processed) * (self.blocks_per_chunk - self.kept_blocks)
        return -(-num_tokens // self.block_size) - dropped

    def target_slots(self, chunk: int) -> list[int]:
        """Slots to which the tokens of a compressed chunk move, ascending: its first M - o and its last o.

        A chunk that keeps nothing hands on the o tokens that share a block with it, the sink's last ones.
        """
        start, end = (self.rule.sink_size + c * self.rule.lag_size for c in (chunk, chunk + 1))
        return [*range(start, start + self.rule.kept - self.offset), *range(end - self.offset, end)]

    def compact_columns(self, num_columns: int, compressed_R: Tensor) -> Tensor:
        """The columns of the block table in the order of the compact one, int64 [R, W].

        Args:
            num_columns: W.
            compressed_R: chunks that are compressed for the queries of each request, int64.
        """
        chunk_W, column_W = _columns(self, num_columns, compressed_R.device)
        skipped_RW = torch.minimum(chunk_W, compressed_R.unsqueeze(-1)) * (self.blocks_per_chunk - self.kept_blocks)
        return (column_W + skipped_RW).clamp_(max=num_columns - 1)


@lru_cache(maxsize=16)
def _columns(layout: BlockLayout, num_columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each column of a compact table the compressed chunk that it would belong to, and the column itself."""
    column_W = torch.arange(num_columns, device=device)
    after_sink_W = column_W - layout.first_block(0)
    if layout.kept_blocks:
        return after_sink_W.clamp(min=0) // layout.kept_blocks, column_W
    return torch.where(after_sink_W < 0, 0, num_columns), column_W
