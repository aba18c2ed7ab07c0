"""Files as users have them: every wrong one is one error that names it, and its line; harmless ones are read."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from lrsa_lightning.data.corpus import Corpus
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.errors import InputError
from tests.conftest import longalign_row
from tests.data.test_sources import GOOD, write

LINE = json.dumps(GOOD).encode() + b"\n"
DEEP = b"[" * 100_000
FIELDS = {"document": "context", "question": "query", "answer": "response"}
OWN = {"context": "A text.", "query": "What?", "response": "That."}


def turns(user, answer):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def chat(*roles):
    return {"messages": [{"role": role, "content": "Text."} for role in roles]}


def write_bytes(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def corpus(train, val=(), **options):
    defaults = {"source": "auto", "fields": {}, "mixture": {}, "bad_rows": "error", "seed": 0}
    return Corpus(train, [*val], **{**defaults, **options})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \r\n\n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.parquet", b"", "not a parquet file"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.jsonl.gz", b"", "is empty"),
        ("a.jsonl.gz", LINE, "no gzip file"),
        ("a.jsonl.gz", gzip.compress(LINE)[:-20], "cut short"),
        ("a.json.gz", gzip.compress(b"[" + LINE + b"]")[:-20], "cut short"),
        ("a.jsonl.gz", gzip.compress(LINE * 50)[:40] + b"\x00\xff" * 40, "no gzip file, or a corrupt one"),
        ("a.parquet.gz", LINE, "no gzip file"),
        ("a.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "not a parquet file"),
        ("a.jsonl", LINE + DEEP, "line 2: not valid JSON"),
        ("a.json", DEEP, "not valid JSON"),
        ("a.jsonl", LINE + b'{"n": ' + b"1" * 5000 + b"}", "line 2: "),
        ("a.jsonl", LINE + b'{"messages": NaN}', "line 2: expected"),
        ("a.jsonl", LINE + b"NaN", "line 2: expected an object"),
        ("a.jsonl", LINE + b"null", "line 2: expected an object"),
        ("a.json", b"[" + LINE + b", 5]", "item 2: expected an object"),
        ("a.jsonl", LINE.decode().encode("utf-16"), "line 1: not UTF-8"),
        ("a.jsonl", LINE + "{\"messages\": \"\xe9\"}".encode("latin-1"), "line 2: not UTF-8"),
        ("a.jsonl", LINE + json.dumps(OWN).encode(), "line 2: expected"),  # of another format
        ("a.json", json.dumps(GOOD, indent=1).encode(), "line 1: not valid JSON.*or one array of all"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        list(read_samples(write_bytes(tmp_path / name, content)))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (turns("Text.\n\nWhich?", None), "not NoneType"),
        (turns("Text.\n\nWhich?", 5), "not int"),
        (turns([{"type": "text", "text": "Which?"}], "That."), "text as the content of each turn, not list"),
        (turns("Text.\n\nWhich?", "\ud83d"), "the answer has half a character"),
        (turns("A\udc00 text.\n\nWhich?", "That."), "the document has half a character"),
        (chat("user", "assistant", "assistant"), "the last two of 3 turns, not assistant, assistant"),
        (chat("tool", "user", "assistant"), "roles system, user, assistant, not tool"),
        ({"messages": []}, "the last two of 0 turns, not none"),
        ({"prompt": "Which?", "chosen": "That.", "rejected": "This."}, "compares two answers .* one answer"),
        ({"messages": {"role": "user"}}, "expected"),
        ({"messages": [["user", "Which?"]]}, "expected"),
        ({"messages": [{"role": ["user"], "content": "Which?"}] * 2}, "expected"),
        ({"document": "A text.", "question": "Which?", "answer": 5.0}, "the answer is float, not text"),
        ({"document": None, "question": "Which?", "answer": "That."}, "expected"),
        ({"document": "A text.", "question": ["Which?"], "answer": "That."}, "expected"),
        ({"instruction": "Which?", "output": ["That."]}, "the answer is list, not text"),
        ({"instruction": "Which?", "output": "That.", "input": 5}, "expected"),
        ({"dialogue": ["<user 1>: Which?"]}, "expected"),
    ],
)
def test_a_part_of_another_type_is_named(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"a\.jsonl, line 1: .*{message}"):
        list(read_samples(write(tmp_path / "a.jsonl", [row])))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat("user", "assistant") | {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant"}]},
         r"expected the key 'content' in messages\[1\], which has only 'role'"),
        ({"messages": "user: Which?"}, "expected a list of turns in messages, not str"),
        ({"messages": [{"from": "human", "value": "Which?"}]}, r"expected the key 'role' in messages\[0\]"),
        ({"messages": ["Which?"]}, r"expected an object with 'role' and 'content' in messages\[0\], not str"),
        (turns("Which?", ["That."]), r"messages\[1\]: expected text as the content of each turn, not list"),
        (chat("tool", "user", "assistant"), r"messages\[0\]: expected turns of the roles system, user, assistant"),
        ({"conversations": [{"from": "human", "value": 5}]}, r"conversations\[0\]: expected text .*, not int"),
        ({"instruction": "Which?", "output": 5}, "the answer is int, not text, in the column 'output'"),
        ({"instruction": "Which?", "output": "That.", "input": 5}, "the input is int, not text"),
        ({"document": "A text.", "question": None, "answer": "That."}, "the question is NoneType, not text"),
        ({"dialogue": 5}, "the dialogue is int, not text"),
    ],
)  # fmt: skip
def test_a_message_says_where_in_the_row_what_was_expected_and_the_way_out(tmp_path, row, message):
    file = write(tmp_path / "a.jsonl", [row])
    way_out = r"; expected \{\".*; mend the row, or leave out such rows with data\.bad_rows skip"
    with pytest.raises(InputError, match=rf"^{file}, line 1: {message}.*{way_out}"):
        list(read_samples(file))


def test_a_row_that_lacks_a_column_of_the_first_one_is_named(tmp_path):
    rows = [{"document": "A", "question": "B", "answer": "C"}, {"document": "A", "question": "B"}]
    with pytest.raises(
        InputError, match="line 2: expected the column 'answer', but the row has only 'document', 'quest"
    ):
        list(read_samples(write(tmp_path / "a.jsonl", rows)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path, name):
    text = codecs.BOM_UTF8 + (b"\r\n".join([LINE.strip()] * 2) if ".jsonl" in name else b"\r\n [%s,%s]" % (LINE, LINE))
    file = write_bytes(tmp_path / name, gzip.compress(text) if name.endswith(".gz") else text)
    assert [sample.answer for sample in read_samples(file)] == ["The second."] * 2


def test_a_zipped_parquet_file_is_read(tmp_path):
    plain = Path(write(tmp_path / "a.parquet", [GOOD] * 2))
    zipped = write_bytes(tmp_path / "b.parquet.gz", gzip.compress(plain.read_bytes()))
    assert [sample.id for sample in read_samples(zipped)] == ["b.parquet.gz:1", "b.parquet.gz:2"]


def test_a_file_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    file = write(tmp_path / "a.jsonl", [GOOD])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        list(read_samples(file))


def test_rows_that_are_all_malformed_are_an_error_though_malformed_ones_are_skipped(tmp_path):
    with pytest.raises(
        InputError, match=r"no row of .*a\.jsonl could be read; the first: .*line 1: the answer is empty"
    ):
        list(read_samples(write(tmp_path / "a.jsonl", [turns("Which?", " ")] * 3), skipped=[]))


def test_fields_apply_where_they_fit(tmp_path):
    own, other = write(tmp_path / "own.jsonl", [OWN]), write(tmp_path / "other.jsonl", [GOOD])
    both = corpus([own], [other], fields=FIELDS)
    both.check()
    assert [sample.answer for what in ("train", "val") for sample in both.samples(what)] == ["That.", "The second."]
    for source, answers in (("auto", ["The second."]), ("longalign", ["The second."])):
        assert [sample.answer for sample in read_samples(other, source, FIELDS)] == answers
    with pytest.raises(InputError, match=r"own\.jsonl, line 1: data\.fields names the column 'wrong'"):
        corpus([other], [own], fields={**FIELDS, "answer": "wrong"}).check()


def test_fields_that_fit_no_file_are_an_error(tmp_path):
    other = write(tmp_path / "other.jsonl", [GOOD])
    with pytest.raises(InputError, match=r"data\.fields fits no file.*'context', 'query', 'response'"):
        corpus([other], fields=FIELDS).check()


def test_a_row_without_the_fields_of_its_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"line 2: data\.fields names the column 'response'"):
        list(read_samples(write(tmp_path / "a.jsonl", [OWN, {"context": "A", "query": "B"}]), fields=FIELDS))


def test_a_file_named_twice_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.jsonl", [GOOD])
    (tmp_path / "link.jsonl").symlink_to(file)
    for other in (file, "a.jsonl", "./a.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match=r"data\.train_files names .*a\.jsonl and .*which are one file.*mixture"):
            corpus([file, other]).check()
    with pytest.raises(InputError, match=r"data\.val_files names"):
        corpus([write(tmp_path / "b.jsonl", [GOOD])], [file, "a.jsonl"]).check()


def test_a_validation_file_that_is_trained_on_is_a_warning(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", [GOOD])
    corpus([file], [write(tmp_path / "b.jsonl", [GOOD])]).check()
    assert not caplog.records
    corpus([file], [file]).check()
    assert "which is a train file too" in caplog.text


def test_a_mixture_that_leaves_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"data\.mixture leaves no sample"):
        corpus([write(tmp_path / "a.jsonl", [longalign_row("A.", "B?", "C.")])], mixture={"a": 0.0}).samples("train")
