"""Compact block tables and lengths of a step, from what vLLM has: on the device, without waiting for it.

Shape suffixes: R requests, W columns of a block table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrsa_lightning.serving.vllm.layout import BlockLayout
from lrsa_lightning.serving.vllm.steps import Piece


def compressed_chunks(layout: BlockLayout, ends_R: Tensor, rows: Tensor) -> Tensor:
    """Chunks that are compressed for the first query of each request, int64 [R].

    Args:
        layout: of the cache.
        ends_R: tokens of each request after the step.
        rows: row of each request's first query, and the number of all: [R + 1].
    """
    starts_R = ends_R - (rows[1:] - rows[:-1])
    chunk_R = torch.div(starts_R - layout.rule.sink_size, layout.rule.lag_size, rounding_mode="floor")
    return (chunk_R - 1).clamp(min=0).long()


def compact_table(layout: BlockLayout, table_RW: Tensor, compressed_R: Tensor, out: Tensor | None = None) -> Tensor:
    """The block tables [R, W] without the blocks that compressed chunks gave back."""
    return torch.gather(table_RW, 1, layout.compact_columns(table_RW.shape[1], compressed_R), out=out)


@dataclass(frozen=True)
class PieceTables:
    """What an attention call over some pieces needs, each as a request of its own.

    Attributes:
        table_RW: compact block tables.
        held: tokens in them, of each piece.
        rows: first row of each piece among the queries of the call, and the number of all; int32 on the host.
    """

    table_RW: Tensor
    held: list[int]
    rows: Tensor

    @classmethod
    def of(cls, layout: BlockLayout, pieces: Sequence[Piece], table_RW: Tensor) -> "PieceTables":
        """
        Args:
            layout: of the cache.
            pieces: at most one of each request.
            table_RW: block tables of the step, uncompressed.
        """
        device = table_RW.device
        requests = torch.tensor([piece.request for piece in pieces], device=device)
        compressed = [layout.compressed_for(piece.start) for piece in pieces]
        held = [layout.held_len(piece.end, count) for piece, count in zip(pieces, compressed, strict=True)]
        counts = torch.tensor([0, *(len(piece.rows) for piece in pieces)])
        compact_RW = compact_table(layout, table_RW[requests], torch.tensor(compressed, device=device))
        return cls(compact_RW, held, counts.cumsum(0, dtype=torch.int32))
