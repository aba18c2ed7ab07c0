"""A paged KV cache with a pool of blocks, and the attention over it: what vLLM does, in a few lines.

Shape suffixes: B blocks, G KV heads, P places of a block, E = 2 D elements, H query heads, N tokens, D head size.
"""

import torch
from torch import Tensor

from lrsa_lightning.attention.rule import LagRule
from lrsa_lightning.serving.vllm.backends.paged import read_paged
from lrsa_lightning.serving.vllm.compression import compress
from lrsa_lightning.serving.vllm.layout import BlockLayout
from lrsa_lightning.serving.vllm.steps import Move, cut
from lrsa_lightning.serving.vllm.tables import PieceTables

POISON = 1e4


class PagedCache:
    """Some requests of known keys, whose tokens come in steps.

    Attributes:
        free: ids of the pool's free blocks.
    """

    def __init__(self, rule: LagRule, block_size: int, num_blocks: int, states: list[tuple[Tensor, Tensor, Tensor]]):
        """
        Args:
            rule: of the layer.
            block_size: P.
            num_blocks: B.
            states: queries [H, N, D], keys and values [G, N, D] of each request.
        """
        self.rule, self.layout, self._states = rule, BlockLayout(rule, block_size), states
        _, keys, _ = states[0]
        self._cache_BGPE = keys.new_full((num_blocks, keys.shape[0], block_size, 2 * keys.shape[-1]), POISON)
        self.free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
        self._tables: list[list[int]] = [[] for _ in states]  # with the ids of blocks that were given back, as vLLM's
        self._given_back: set[tuple[int, int]] = set()
        self._seen = [0] * len(states)

    def step(self, counts: list[int]) -> list[Tensor]:
        """The attention of the next tokens of each request, [H, n, D]."""
        for request, count in enumerate(counts):
            self._prepare(request, count)
        width = max(map(len, self._tables))
        rows = [row + [0] * (width - len(row)) for row in self._tables]
        table_RW = torch.tensor(rows, dtype=torch.int32, device=self._cache_BGPE.device)
        first_rows = torch.tensor([0, *counts]).cumsum(0).tolist()
        queries = [q[:, s : s + n] for (q, _, _), s, n in zip(self._states, self._seen, counts, strict=True)]
        out = torch.empty_like(torch.cat(queries, dim=1))
        for part in cut(self.layout, self._seen, first_rows):
            if move := Move.of(self.layout, part.due, table_RW):
                compress(move, self.rule, 0, lambda blocks: read_paged(self._cache_BGPE, blocks), self._write)
            rows = part.rows(out.device)
            out[:, rows] = self._attend(
                torch.cat(queries, dim=1)[:, rows], PieceTables.of(self.layout, part.pieces, table_RW)
            )
        self._seen = [seen + count for seen, count in zip(self._seen, counts, strict=True)]
        return [*out.split(counts, dim=1)]

    def _prepare(self, request: int, count: int) -> None:
        """Gives blocks back, takes new ones and writes the new tokens."""
        table, seen, size = self._tables[request], self._seen[request], self.layout.block_size
        for chunk in range(self.layout.compressed_after(seen)):
            for column in self.layout.freed_blocks(chunk):
                if (request, column) not in self._given_back:
                    self._given_back.add((request, column))
                    self.free.append(table[column])
                    self._cache_BGPE[table[column]] = POISON
        table += [self.free.pop(0) for _ in range(-(-(seen + count) // size) - len(table))]
        slots = [table[token // size] * size + token % size for token in range(seen, seen + count)]
        new = (z[:, seen : seen + count].transpose(0, 1) for z in self._states[request][1:])
        self._write(torch.tensor(slots, device=self._cache_BGPE.device, dtype=torch.int64), *new)

    def _write(self, slots: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> None:
        size = self.layout.block_size
        self._cache_BGPE[slots // size, :, slots % size] = torch.cat([k_TGD, v_TGD], dim=-1)

    def _attend(self, q_HND: Tensor, tables: PieceTables) -> Tensor:
        k_RGND, v_RGND = (z.double() for z in read_paged(self._cache_BGPE, tables.table_RW.long()))
        groups, out = k_RGND.shape[1], []
        parts = q_HND.double().split(tables.rows.diff().tolist(), dim=1)
        for q, k, v, held in zip(parts, k_RGND, v_RGND, tables.held, strict=True):
            q_GXND = q.unflatten(0, (groups, -1))
            scores = q_GXND @ k[:, None, :held].transpose(-1, -2) * q.shape[-1] ** -0.5
            hidden = torch.ones(q.shape[1], held, dtype=torch.bool, device=q.device).triu(held - q.shape[1] + 1)
            out.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, None, :held]).flatten(0, 1))
        return torch.cat(out, dim=1).to(q_HND.dtype)
