"""Each public format, read from a file written here; one clear error with the row for what is wrong."""

import gzip
import json

import pytest

from lrsa_lightning.data import formats
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.errors import InputError
from tests.conftest import longalign_row, write_jsonl

GOOD = longalign_row("First paragraph.\n\nSecond paragraph.", "Which one?", "The second.")
USER, ANSWER = GOOD["messages"][0]["content"], GOOD["messages"][1]["content"]
DOCUMENT, QUESTION = "First paragraph.\n\nSecond paragraph.\n\n", "Which one?"
FORMATS = {
    "longalign": GOOD,
    "sharegpt": {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]},
    "longalpaca": {"instruction": USER, "output": ANSWER, "input": ""},
    "anti_haystack": {"document": DOCUMENT.rstrip(), "question": QUESTION, "answer": ANSWER},
    "refgpt": {
        "reference": DOCUMENT.rstrip(),
        "dialogue": f"<user 1>: {QUESTION}\n<assistant 1>: {ANSWER}",
    },
}


def as_longalign(row):
    return Sample("a:1", *formats.FORMATS["longalign"].parse(row))


def parts(sample):
    return sample.document, sample.question, sample.answer


def write(path, rows):
    """A file of the kind that its ending says."""
    if path.name.endswith(".parquet"):
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
        return str(path)
    text = json.dumps(rows) if ".json" in path.suffixes else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz"])
def test_a_format_is_read_from_every_kind_of_file(tmp_path, source, ending):
    path = tmp_path / f"a{ending}"
    with_rows = write(path, [FORMATS[source]] * 2)
    for given in ("auto", source):
        first, second = read_samples(with_rows, given)
        assert parts(first) == parts(second) == (DOCUMENT, QUESTION, ANSWER)
        assert first.prompt == USER
        assert [first.id, second.id] == [f"a{ending}:1", f"a{ending}:2"]


def test_columns_of_other_names(tmp_path):
    row = {"context": "A text.", "query": "What?", "response": "That.", "other": 1}
    fields = {"document": "context", "question": "query", "answer": "response"}
    (sample,) = read_samples(write(tmp_path / "a.jsonl", [row]), fields=fields)
    assert parts(sample) == ("A text.\n\n", "What?", "That.")
    with pytest.raises(InputError, match=r"data\.fields names the column 'wrong'.*'context', 'query'"):
        list(read_samples(write(tmp_path / "b.jsonl", [row]), fields={**fields, "answer": "wrong"}))


def test_the_answer_of_a_longer_chat_is_its_last_turn(tmp_path):
    turns = [("system", "Be brief."), ("user", "Text.\n\nFirst?"), ("assistant", "One."), ("user", "Second?")]
    messages = [{"role": role, "content": content} for role, content in [*turns, ("assistant", "Two.")]]
    (sample,) = read_samples(write(tmp_path / "a.jsonl", [{"messages": messages}]))
    assert parts(sample) == ("Be brief.\n\nText.\n\nFirst?\n\nOne.\n\n", "Second?", "Two.")


def test_paragraphs_and_language():
    sample = as_longalign(GOOD)
    assert sample.paragraphs() == ["First paragraph.", "Second paragraph."]
    assert sample.language == "other"
    chinese = as_longalign(longalign_row("这是第一段。\n这是第二段。", "哪一段？", "第二段。"))
    assert chinese.language == "zh"
    assert chinese.paragraphs() == ["这是第一段。", "这是第二段。"]


@pytest.mark.parametrize(
    ("document", "question", "language"),
    [
        ("中" * 21 + "a" * 79, "Which?", "zh"),  # more than a fifth
        ("中" * 20 + "a" * 80, "Which?", "other"),
        ("中" * 21 + "1 . " * 500 + "a" * 79, "Which?", "zh"),  # of the letters
        ("a" * 1000 + "中" * 9000, "Which?", "other"),  # of the first thousand
        ("これは日本語の文章です。漢字も使います。東京都に住んでいます。", "Which?", "ja"),
        ("二〇二〇年、东京の国立博物馆。这是一段很长的中文文字，只有一个日文假名。", "Which?", "zh"),
        ("이것은 한국어 문장입니다.", "Which?", "ko"),
        ("Это русский текст.", "Which?", "other"),
        ("", "哪一段？", "zh"),
        ("A text.", "哪一段？", "other"),
        ("", "?", "other"),
    ],
)
def test_a_fifth_of_the_first_thousand_letters_decides_on_the_language(document, question, language):
    assert Sample("a:1", document, question, "That.").language == language


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(GOOD) + "\n\n")
    assert [sample.id for sample in read_samples(str(path))] == ["a.jsonl:2"]


BROKEN = [
    (b"{not json}", "line 2: not valid JSON"),
    (b'{"messages": "text"}', "line 2: expected"),
    (b"[1]", "line 2: expected"),
    (b'{"messages": [{"role": "user", "content": "q"}]}', "line 2: expected"),
    (b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}', "line 2: exp"),
    (b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}', "answer is empty"),
    (b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant"}]}', "line 2: expected"),
    (b'{"messages": "\xff"}', "line 2: not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        list(read_samples(str(path)))
    assert "broken.jsonl" in str(caught.value)


def test_malformed_lines_can_be_skipped_and_counted(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join([json.dumps(GOOD).encode(), *(line for line, _ in BROKEN), json.dumps(GOOD).encode()]))
    skipped = []
    assert [sample.id for sample in read_samples(str(path), skipped=skipped)] == ["broken.jsonl:1", "broken.jsonl:10"]
    assert len(skipped) == len(BROKEN)
    assert "line 2: not valid JSON" in skipped[0]


def test_the_first_row_can_be_skipped_but_not_all_rows(tmp_path):
    path, skipped = write(tmp_path / "a.jsonl", [{"prose": "x"}, GOOD]), []
    assert [sample.id for sample in read_samples(path, skipped=skipped)] == ["a.jsonl:2"]
    assert "no known format" in skipped[0]
    with pytest.raises(InputError, match=r"no row of .*b\.jsonl could be read; the first: .*no known format"):
        list(read_samples(write(tmp_path / "b.jsonl", [{"prose": "x"}] * 2), skipped=[]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", r"nowhere\.jsonl does not exist"),
        ("no-such-owner/no-such-set", r"hf download --repo-type dataset no-such-owner/no-such-set"),
    ],
)
def test_a_missing_file_or_data_set_is_named_with_what_to_do(name, message, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        list(read_samples(name))


def test_an_unknown_format_or_kind_of_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"line 1: no known format has the columns 'prose'.*data\.fields"):
        list(read_samples(str(write_jsonl(tmp_path / "a.jsonl", [{"prose": "x"}]))))
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"a\.xlsx: expected \.json, \.jsonl, \.csv, \.tsv, \.parquet, \.arrow"):
        list(read_samples(str(tmp_path / "a.xlsx")))
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(InputError, match=r"a\.parquet: not a parquet file"):
        list(read_samples(str(tmp_path / "a.parquet")))
