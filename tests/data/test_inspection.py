"""The picture of `lrsa inspect`."""

import pytest
from matplotlib.figure import Figure

from lrsa_lightning.data.inspection import draw_lengths


class Prepared:
    """Lengths of prepared samples."""

    num_ids = (80, 101)

    def __len__(self) -> int:
        return 2


def test_lengths_have_a_line_at_seq_len_and_a_bin_ends_after_what_fits(monkeypatch):
    """A row of 100 tokens takes samples of 101 ids. The last id is a label only."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    draw_lengths([101, 102, 350], Prepared(), 100, "x.png")
    (axes,) = drawn[0].axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [100, 100]
    as_read, prepared = ([bar for bar in bars if bar.get_height()] for bars in axes.containers)
    for bar, length in zip(as_read, (101, 102, 350), strict=True):
        assert bar.get_x() <= length < bar.get_x() + bar.get_width()
    assert as_read[0].get_x() + as_read[0].get_width() == pytest.approx(102)
    assert len(prepared) == 2
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["as read: 3 samples", "prepared for training: 2 samples", "data.seq_len: 100 tokens"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens of a sample", "samples")
