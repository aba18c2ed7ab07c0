"""The LRSA rule, its only copy: chunk arithmetic, scores, selection.

A sequence is a sink of S tokens, then chunks of L tokens (the lag). The rule scores a chunk against the next chunk and
keeps its M = int(r * L) best tokens. Later queries see only those (arXiv 2506.11498, with the scores of LagKV,
arXiv 2504.04704).

Shape suffixes: B batch, G KV heads, N tokens, D head size, P complete chunks, T scored chunks, L lag,
M kept per chunk, C compact keys (the sink, then the kept tokens).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.attention.scorers import ChunkLocation, LagKVScorer, Scorer

# Longer than any sequence: a sink of this size leaves no token for a chunk.
_ENDLESS = 2**62


@dataclass(frozen=True)
class LagRule:
    """The sizes of the rule, and what follows from them. Positions and counts are tokens.

    Attributes:
        sink_size: S, tokens at the start that every later query sees.
        lag_size: L, tokens in a chunk.
        kept: M, tokens that a compressed chunk keeps.
        scorer: ranks the tokens of a chunk.
        first_kv_head: the first KV head of this rank's share of the heads; 0 where a rank has all of them.
    """

    sink_size: int
    lag_size: int
    kept: int
    scorer: Scorer = LagKVScorer()  # noqa: RUF009  frozen
    first_kv_head: int = 0

    @property
    def drops_tokens(self) -> bool:
        """Whether a compressed chunk is smaller than before."""
        return self.kept < self.lag_size

    def keeping_all(self) -> "LagRule":
        """The same chunks, all of their tokens kept: full attention."""
        return replace(self, kept=self.lag_size)

    def without_chunks(self) -> "LagRule":
        """Full attention as well, with every token in the sink: what a skipped layer computes."""
        return replace(self, sink_size=_ENDLESS, lag_size=1, kept=1)

    def complete_chunks(self, num_tokens: int) -> int:
        """P, the chunks that ``num_tokens`` tokens fill."""
        return max(0, (num_tokens - self.sink_size) // self.lag_size)

    def compressed_chunks(self, num_tokens: int) -> int:
        """Chunks whose next chunk is complete, so that they are compressed: max(P - 1, 0)."""
        return max(0, self.complete_chunks(num_tokens) - 1)

    def compact_len(self, num_tokens: int) -> int:
        """C, the keys kept for good among ``num_tokens`` tokens: the sink and M of each compressed chunk."""
        return min(self.sink_size, num_tokens) + self.compressed_chunks(num_tokens) * self.kept

    def raw_start(self, num_tokens: int) -> int:
        """Position of the first token after the compressed chunks."""
        return min(self.sink_size, num_tokens) + self.compressed_chunks(num_tokens) * self.lag_size

    def stored_len(self, num_tokens: int) -> int:
        """Tokens that a cache layer holds after ``num_tokens`` tokens: the compact keys and all later ones."""
        return self.compact_len(num_tokens) + num_tokens - self.raw_start(num_tokens)

    def most_held(self, num_tokens: int) -> int:
        """Most tokens that a cache layer holds on its way to ``num_tokens``, token by token.

        The token that completes a chunk attends before the chunk is compressed.
        """
        complete = self.complete_chunks(num_tokens)
        if complete < 2:
            return num_tokens
        before_compression = self.sink_size + (complete - 2) * self.kept + 2 * self.lag_size
        return max(before_compression, self.stored_len(num_tokens))

    def chunk_of(self, position: int) -> int:
        """Chunk of a position; the sink counts as chunk 0, whose queries are plain causal too."""
        return max(0, (position - self.sink_size) // self.lag_size)

    def compact_visible(self, chunk: int) -> int:
        """Compact keys that a query of ``chunk`` sees: the sink and the kept tokens of chunks 0 .. chunk-2."""
        return self.sink_size + max(0, chunk - 1) * self.kept

    def raw_visible(self, chunk: int) -> int:
        """First position that a query of ``chunk`` sees uncompressed: the start of chunk - 1."""
        return self.sink_size + max(0, chunk - 1) * self.lag_size

    @torch.no_grad()
    def score(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int, start: int) -> Tensor:
        """Scores of T consecutive chunks.

        Args:
            k_BGND: keys after RoPE of T + 1 complete chunks, N = (T + 1) * L.
            v_BGND: their values.
            layer_idx: the decoder layer.
            start: position of the first token.

        Returns:
            float32 [B, G, T, L].
        """
        location = ChunkLocation(layer_idx, start, self.first_kv_head)
        return self.scorer.score(k_BGND, v_BGND, self.lag_size, location)

    def keep_best(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int, start: int) -> Tensor:
        """Offsets of the kept tokens, int64 [B, G, T * M], ascending. Arguments as in `score`."""
        return highest(self.score(k_BGND, v_BGND, layer_idx, start), self.kept)

    def scores(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int = 0) -> Tensor:
        """Scores of every compressed chunk of a sequence, float32 [B, G, T, L], given all of its keys and values."""
        num_chunks = self.compressed_chunks(k_BGND.shape[2])
        if num_chunks == 0:
            return k_BGND.new_zeros((*k_BGND.shape[:2], 0, self.lag_size), dtype=torch.float32)
        chunks = slice(self.sink_size, self.sink_size + (num_chunks + 1) * self.lag_size)
        return self.score(k_BGND[:, :, chunks], v_BGND[:, :, chunks], layer_idx, self.sink_size)

    def select(self, k_BGND: Tensor, v_BGND: Tensor, layer_idx: int = 0) -> Tensor:
        """Positions that stay visible for good: the sink, then the kept tokens of each compressed chunk.

        Args:
            k_BGND: keys after RoPE of a sequence, any dtype.
            v_BGND: their values.
            layer_idx: the decoder layer.

        Returns:
            int64 [B, G, C], ascending.
        """
        kept_BGK = highest(self.scores(k_BGND, v_BGND, layer_idx), self.kept) + self.sink_size
        sink = torch.arange(min(self.sink_size, k_BGND.shape[2]), device=k_BGND.device)
        return torch.cat([sink.expand(*k_BGND.shape[:2], -1), kept_BGK], dim=-1)


def rule_of(mode_or_rule: Any, layer_idx: int | None = None) -> LagRule:
    """The rule itself, or the rule of a mode in a layer."""
    return mode_or_rule if isinstance(mode_or_rule, LagRule) else mode_or_rule.rule(layer_idx)


def kept_per_chunk(lag_size: int, retention_ratio: float) -> int:
    """M = int(r * L)."""
    return int(retention_ratio * lag_size)


def highest(scores_BGTL: Tensor, kept: int) -> Tensor:
    """Offsets, within T consecutive chunks, of each chunk's ``kept`` highest scores.

    Returns:
        int64 [B, G, T * M], ascending. Ties go to the lower position.
    """
    num_chunks, lag_size = scores_BGTL.shape[-2:]
    # topk promises no order among equals, a stable sort does.
    order = scores_BGTL.sort(dim=-1, descending=True, stable=True).indices
    best_BGTM = order[..., :kept].sort(dim=-1).values
    starts_T1 = torch.arange(num_chunks, device=scores_BGTL.device).unsqueeze(-1) * lag_size
    return (best_BGTM + starts_T1).flatten(-2)


def gather_tokens(z_BGND: Tensor, idx_BGC: Tensor) -> Tensor:
    """The tokens ``idx_BGC`` of ``z_BGND``, [B, G, C, D]; differentiable in z."""
    return z_BGND.gather(2, idx_BGC.unsqueeze(-1).expand(-1, -1, -1, z_BGND.shape[-1]))
