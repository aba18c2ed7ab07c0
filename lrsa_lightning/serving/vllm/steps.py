"""A step of a continuous batch, cut at the chunk boundaries of its requests.

A step computes consecutive tokens of each request. Where they cross a boundary, a chunk is compressed between the last
query before the boundary and the first one after it. So a step is a few rounds: a round attends with at most one piece
of each request, and compresses what is due before.

Shape suffixes: R requests, W columns of a block table, Q queries, C blocks of two chunks, T moved tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrsa_lightning.serving.vllm.layout import BlockLayout


@dataclass(frozen=True)
class Piece:
    """Consecutive queries of a request that see the same compressed chunks.

    Attributes:
        request: row of the block table.
        start: position of the first query.
        end: position after the last one.
        row: of the first query among those of the step.
    """

    request: int
    start: int
    end: int
    row: int

    @property
    def rows(self) -> range:
        """Its queries among those of the step."""
        return range(self.row, self.row + self.end - self.start)


@dataclass
class Round:
    """Pieces that one attention call computes.

    Attributes:
        pieces: at most one of each request, in the order of their rows.
        due: request and chunk to compress before.
    """

    pieces: list[Piece] = field(default_factory=list)
    due: list[tuple[int, int]] = field(default_factory=list)

    def rows(self, device: torch.device) -> slice | Tensor:
        """The queries of the round among those of the step."""
        first, last = self.pieces[0].rows, self.pieces[-1].rows
        if last.stop - first.start == sum(len(piece.rows) for piece in self.pieces):
            return slice(first.start, last.stop)
        return torch.tensor([row for piece in self.pieces for row in piece.rows], device=device)


def cut(layout: BlockLayout, starts: Sequence[int], first_rows: Sequence[int]) -> list[Round]:
    """The rounds of a step.

    Args:
        layout: of the cache.
        starts: position of each request's first query.
        first_rows: row of each request's first query, and the number of all.
    """
    rounds: list[Round] = [Round()]
    for request, start in enumerate(starts):
        row, end = first_rows[request], start + first_rows[request + 1] - first_rows[request]
        bounds = [*_boundaries(layout, start, end), end]
        for number, bound in enumerate(bounds):
            if start == end:
                break  # padding of a batch
            if number == len(rounds):
                rounds.append(Round())
            rounds[number].pieces.append(Piece(request, start, bound, row))
            if (chunk := layout.due_chunk(start)) is not None:
                rounds[number].due.append((request, chunk))
            row, start = row + bound - start, bound
    return rounds


def _boundaries(layout: BlockLayout, start: int, end: int) -> range:
    """Positions inside start .. end at which a chunk is compressed."""
    sink, lag = layout.rule.sink_size, layout.rule.lag_size
    first = max(2, (start - sink) // lag + 1)
    return range(sink + first * lag, end, lag)


@dataclass(frozen=True)
class Move:
    """Chunks to compress at the same moment, of several requests; the same in all layers.

    Attributes:
        layout: of the cache.
        chunks: of each request.
        blocks_RC: ids of the blocks that hold the chunk and the next one.
        slots_RT: numbers of the slots to which the tokens move.
    """

    layout: BlockLayout
    chunks: tuple[int, ...]
    blocks_RC: Tensor
    slots_RT: Tensor

    @classmethod
    def of(cls, layout: BlockLayout, due: Sequence[tuple[int, int]], table_RW: Tensor) -> "Move | None":
        """
        Args:
            layout: of the cache.
            due: row of the block table and chunk.
            table_RW: block tables as vLLM has them, uncompressed.

        Returns:
            None where nothing moves.
        """
        if not due or not layout.target_slots(0):
            return None
        requests, chunks = zip(*due, strict=True)
        device, block_size = table_RW.device, layout.block_size
        rows_RW = table_RW[torch.tensor(requests, device=device)].long()
        num_blocks = 2 * layout.blocks_per_chunk + (layout.offset > 0) if layout.rule.kept else 1
        columns = [[*range(first, first + num_blocks)] for first in map(layout.first_block, chunks)]
        slots_RT = torch.tensor([layout.target_slots(chunk) for chunk in chunks], device=device)
        blocks_RT = rows_RW.gather(1, slots_RT // block_size)
        blocks_RC = rows_RW.gather(1, torch.tensor(columns, device=device))
        return cls(layout, chunks, blocks_RC, blocks_RT * block_size + slots_RT % block_size)
