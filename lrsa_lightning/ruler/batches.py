"""Which samples are scored together, and in which order."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias, TypeVar

from lrsa_lightning.ruler.samples import Row

# Length and budget, on which the size of a prompt's cache depends.
CacheName: TypeAlias = tuple[int, str]
Samples: TypeAlias = Mapping[tuple[str, int], Sequence[Row]]
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Samples of one length that all ranks score together under one budget.

    Attributes:
        length: maximum length of the samples in tokens.
        budget: label of the cache budget.
        rows: the samples of all ranks, of one task or of several.
    """

    length: int
    budget: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """For messages: task, where there is one, length and budget."""
        tasks = {row["task"] for row in self.rows}
        return "/".join([*(tasks if len(tasks) == 1 else ()), str(self.length), self.budget])

    @property
    def tokens(self) -> int:
        """Prompt tokens and new ones, at most."""
        return self.length * len(self.rows)


# The same samples under each budget, or a single batch.
Group: TypeAlias = list[Batch]


def cell_by_cell(
    samples: Samples, budgets: Sequence[str], sizes: Mapping[CacheName, int], done: Collection[tuple[str, str]] = ()
) -> Iterator[Group]:
    """Each task and length under each budget, one after the other; the shortest samples of a cell first.

    Args:
        samples: by task and length.
        budgets: labels.
        sizes: most samples in a batch.
        done: ids and budgets of samples to leave out.
    """
    for (_, length), rows in samples.items():
        for budget in budgets:
            left = [row for row in rows if (row["id"], budget) not in done]
            # Rows of one batch that have much the same length need little padding.
            for part in _cut(sorted(left, key=lambda row: row["length"]), sizes[length, budget]):
                yield [Batch(length, budget, part)]


def breadth_first(samples: Samples, budgets: Sequence[str], sizes: Mapping[CacheName, int]) -> Iterator[Group]:
    """The first sample of each task under each budget, then the second ones, at all lengths in turn.

    So an evaluation that ends early has scores of each task, length and budget, and budgets are compared on the same
    samples. Tasks share batches: one decoding step costs much the same for one row and for several. The arguments are
    those of `cell_by_cell`.
    """
    yield from in_turn(
        [*_groups_of(length, in_turn(_of_length(samples, length)), budgets, sizes)]
        for length in sorted({length for _, length in samples})
    )


def _of_length(samples: Samples, length: int) -> list[Sequence[Row]]:
    return [rows for (_, own), rows in samples.items() if own == length]


def _groups_of(
    length: int, rows: Iterable[Row], budgets: Sequence[str], sizes: Mapping[CacheName, int]
) -> Iterator[Group]:
    largest = max(sizes[length, budget] for budget in budgets)
    for shared in _cut([*rows], largest):
        yield [Batch(length, budget, part) for budget in budgets for part in _cut(shared, sizes[length, budget])]


def _cut(rows: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    """As few parts as possible, of equal size but for the last."""
    if rows:
        size = -(-len(rows) // -(-len(rows) // most))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def in_turn(lists: Iterable[Sequence[T]]) -> list[T]:
    """The first elements of all lists, then the second ones, and so on."""
    columns = zip_longest(*lists, fillvalue=(missing := object()))
    return [element for column in columns for element in column if element is not missing]
