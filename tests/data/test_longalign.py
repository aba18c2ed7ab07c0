"""Reading LongAlign's format: what is right, and one clear error with the line for what is not."""

import json

import pytest

from lrsa_lightning.data.longalign import read_longalign
from lrsa_lightning.errors import InputError
from tests.conftest import longalign_row, write_jsonl

GOOD = longalign_row("First paragraph.\n\nSecond paragraph.", "Which one?", "The second.")


def test_samples_and_their_paragraphs(tmp_path):
    first, second = read_longalign(write_jsonl(tmp_path / "a.jsonl", [GOOD, GOOD]))
    assert first.id == "a.jsonl:1"
    assert second.id == "a.jsonl:2"
    assert first.prompt == "First paragraph.\n\nSecond paragraph.\n\nWhich one?"
    assert first.answer == "The second."
    assert first.paragraphs() == ["First paragraph.", "Second paragraph."]


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(GOOD) + "\n\n")
    assert [sample.id for sample in read_longalign(path)] == ["a.jsonl:2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json}", "line 2: not valid JSON"),
        (b'{"messages": "text"}', "line 2: expected"),
        (b"[1]", "line 2: expected"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "line 2: expected"),
        (b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}', "line 2: exp"),
        (b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}', "no content"),
        (b'{"messages": "\xff"}', "line 2: not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        list(read_longalign(path))
    assert "broken.jsonl" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl does not exist"):
        list(read_longalign(tmp_path / "nowhere.jsonl"))
