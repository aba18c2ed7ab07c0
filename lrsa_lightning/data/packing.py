"""Which samples share a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: each sample, the longest first, goes where it leaves the least room.

    Args:
        lengths: tokens of each sample, at most ``row_length``.
        row_length: tokens of a row.

    Returns:
        the samples' indices of each row, rows and samples in the order of the data.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[index], 0))
        if at == len(rooms):
            rows.append([index])
            insort(rooms, (row_length - lengths[index], len(rows) - 1))
        else:
            room, row = rooms.pop(at)
            rows[row].append(index)
            insort(rooms, (room - lengths[index], row))
    return sorted(sorted(row) for row in rows)
