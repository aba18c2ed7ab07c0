"""The files of some tasks: which task needs which, and the errors about missing or wrong files."""

import gzip
import json

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import TASKS, make_samples
from tests.ruler.conftest import ALL_TASKS

ESSAY_TASKS = ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"]
SOURCE = {**dict.fromkeys(ESSAY_TASKS, "essays"), "qa_1": "squad", "qa_2": "hotpotqa"}
# Of each source: a task made from it, the file's official name, where to get it.
WHERE = {
    "essays": ("niah_single_2", "PaulGrahamEssays.json", "NVIDIA/RULER"),
    "squad": ("qa_1", "squad.json", "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"),
    "hotpotqa": ("qa_2", "hotpotqa.json", "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json"),
    "english_words": ("cwe", "english_words.json", "NVIDIA/RULER"),
}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_task_needs_its_source_and_no_other(tokenizer, source_files, task):
    name = SOURCE.get(task)
    assert TASKS[task].source == name
    keys = {"max_length": 2048 if task == "cwe" else 4096, "num_samples": 1}
    others = {other: path for other, path in source_files.items() if other != name}
    if name is None:
        assert len(make_samples(task, tokenizer, **keys)) == 1
        return
    with pytest.raises(InputError) as refusal:
        make_samples(task, tokenizer, **keys, **others)
    for said in (name, *WHERE[name][1:]):
        assert said in str(refusal.value)
    assert len(make_samples(task, tokenizer, **keys, **{name: source_files[name]})) == 1


@pytest.mark.parametrize("name", WHERE)
def test_a_missing_file_is_named(tokenizer, tmp_path, name):
    task, official_name, where = WHERE[name]
    path = tmp_path / "absent.json"
    with pytest.raises(InputError) as refusal:
        make_samples(task, tokenizer, 2048, 1, **{name: path})
    for said in (name, str(path), official_name, where):
        assert said in str(refusal.value)


def check_refused(tokenizer, name: str, path, expected: str) -> None:
    with pytest.raises(InputError) as refusal:
        make_samples(WHERE[name][0], tokenizer, 4096, 1, **{name: path})
    for said in (name, str(path), expected):
        assert said in str(refusal.value)


ANSWERED = {"question": "?", "is_impossible": False, "answers": [{"text": "a"}]}
SQUAD_1 = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "?", "answers": [{"text": "a"}]}]}]}]}
EXPECTED = {"essays": '"text"', "squad": "SQuAD v2.0", "hotpotqa": '"context"', "english_words": '"0"'}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("essays", {"texts": "Of another key."}),
        ("essays", ["A list."]),
        ("essays", {"text": " \n"}),
        ("essays", {"text": ["Not", "a", "text"]}),
        ("squad", SQUAD_1),
        ("squad", [ANSWERED]),
        ("squad", {"data": [{"context": "c", "qas": [ANSWERED]}]}),
        ("hotpotqa", {"data": []}),
        ("hotpotqa", [{"question": "?", "context": [["t", ["s"]]]}]),
        # As in the data set of the Hugging Face Hub.
        ("hotpotqa", [{"question": "?", "answer": "a", "context": {"title": ["t"], "sentences": [["s"]]}}]),
        ("english_words", ["a", "list"]),
    ],
)
def test_content_of_another_format_is_refused(tokenizer, tmp_path, name, content):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    check_refused(tokenizer, name, path, EXPECTED[name])


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("json", b""),
        ("json", b"version https://git-lfs.github.com/spec/v1\n"),
        ("json", b'"\xff"'),
        ("json", gzip.compress(b"{}")),
        ("json.gz", b"{}"),
        ("json.gz", gzip.compress(b'{"text": "' + bytes(range(32, 127)) * 50)[:60]),
    ],
    ids=["empty", "lfs_pointer", "not_utf8", "gzip_as_json", "json_as_gzip", "cut_short"],
)
def test_files_without_json_are_refused(tokenizer, tmp_path, name, suffix, content):
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(content)
    check_refused(tokenizer, name, path, EXPECTED[name])


def test_compressed_files_are_the_same(tokenizer, source_files, tmp_path):
    copy = tmp_path / "squad.json.gz"
    copy.write_bytes(gzip.compress(source_files["squad"].read_bytes()))
    plain = make_samples("qa_1", tokenizer, 2048, 3, squad=source_files["squad"])
    assert make_samples("qa_1", tokenizer, 2048, 3, squad=str(copy)) == plain


def test_a_file_that_changed_is_read_again(tokenizer, tmp_path):
    path = tmp_path / "essays.json"
    for word in ("first", "second"):
        path.write_text(json.dumps({"text": f"The {word} essay. " * 40}))
        (sample,) = make_samples("niah_single_2", tokenizer, 1024, 1, essays=path)
        assert f"The {word} essay." in sample["input"]
