"""The picture and the summary of `lrsa inspect`."""

import pytest
from matplotlib.figure import Figure

from lrsa_lightning.data.encoder import TokenizedSample
from lrsa_lightning.data.inspection import draw_lengths, language, marked, summary
from lrsa_lightning.data.sample import Sample


class Prepared:
    """Lengths of prepared samples."""

    num_ids = (80, 101)
    num_labels = (4, 6)
    report = {"read": 3, "kept": 2, "left out": 1}  # noqa: RUF012

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


def chat(system: str, document: str) -> Sample:
    return Sample("f:1", f"{system}\n\n{document}\n\n", "Which?", "That.", (("system", system),), "chat")


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        (Sample("f:1", "Это русский текст.", "Which?", "That."), "Cyrillic script"),
        (Sample("f:1", "", "Which?", "That."), "Latin script"),
        (Sample("f:1", "هذا نص عربي", "Which?", "That."), "Arabic script"),
        (Sample("f:1", "123", "456?", "789"), "without letters"),
        (chat("You are a helpful assistant.", "这是第一段。" * 30), "Chinese"),
        (chat("这是第一段。" * 300, "Text."), "Chinese"),
    ],
)
def test_the_language_is_that_of_the_longest_text(sample, name):
    assert language(sample) == name


def test_the_summary_compares_lengths_with_a_row():
    samples = [chat("Short.", "这是第一段。"), chat("Short.", "Some text."), chat("Short.", "Some text.")]
    lines = summary(samples, [30, 101, 400], Prepared(), 100, ["chatml", "chatml", "base"]).splitlines()
    assert lines == [
        "samples         3 read, 2 kept, 1 left out, in 2 rows",
        "languages       Latin script 66.7%, Chinese 33.3%",
        "templates       chatml 66.7%, base 33.3%",
        "tokens as read  median 101, 90% up to 400, most 400; 2 of 3 samples are longer than data.seq_len 100",
        "tokens a row    mean 90, of data.seq_len 100: 89.6%",
        "label tokens    5.525% of all; least 4, most 6 a sample",
    ]


def test_what_is_learned_is_marked_without_colours(tokenizer):
    ids = tokenizer("One is learned, two is not. " + "Three is." * 500).input_ids
    row = TokenizedSample(ids, len(ids) - 30, learned=[2, 5])
    text = marked(row, tokenizer, most=20).plain
    assert text.count(">>>") == text.count("<<<") == 2
    assert text.startswith(
        f"{tokenizer.decode(ids[:2])}>>>{tokenizer.decode(ids[2:5])}<<<{tokenizer.decode(ids[5:30])}"[:40]
    )
    assert "characters ..." in text
