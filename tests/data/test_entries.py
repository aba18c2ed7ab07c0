"""Entries of data.train_files: tables, folders and hub data sets, each with its own format, names and template."""

import csv
import gzip
from pathlib import Path

import datasets
import pyarrow
import pyarrow.feather
import pytest

from lrsa_lightning.data.data_file import DataFile, data_files
from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.errors import InputError
from lrsa_lightning.run.saved_config import with_absolute_paths
from tests.conftest import sample_rows, write_jsonl
from tests.data.test_files import corpus

ROWS = [
    {"document": 'A "text", in\ntwo lines.', "question": "Which?", "answer": "That; one."},
    {
        "document": "中文。" * 90_000,
        "question": "哪个？",
        "answer": "这个。",
    },  # longer than csv allows by default
]
EXPECTED = [(row["document"] + "\n\n", row["question"], row["answer"]) for row in ROWS]


def texts(samples) -> list[tuple[str, str, str]]:
    return [(sample.document, sample.question, sample.answer) for sample in samples]


def write_table(path: Path, rows=ROWS) -> str:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter="\t" if ".tsv" in path.suffixes else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_tables_are_read(tmp_path, name):
    path = tmp_path / name
    written = write_table(tmp_path / name.removesuffix(".gz"))
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(Path(written).read_bytes()))
    samples = [*read_samples(str(path))]
    assert texts(samples) == EXPECTED
    assert [sample.id for sample in samples] == [f"{name}:2", f"{name}:4"]  # the first row has a line end in a cell


@pytest.mark.parametrize("kind", ["stream", "feather"])
def test_arrow_files_are_read(tmp_path, kind):
    file = tmp_path / "a.arrow"
    table = pyarrow.Table.from_pylist(ROWS * 70)
    if kind == "stream":
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.feather.write_feather(table, file)
    assert texts(read_samples(str(file))) == EXPECTED * 70


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"document,question,answer\nA,B,C\nA,B\n", r"line 3: 2 cells, but the header has 3"),
        ("a.csv", b"document,question,answer\n\nA,B,C,D\n", r"line 3: 4 cells, but the header has 3: quote"),
        ("a.csv", b'document,question,answer\nA,B,"C\n', r"line 2: not valid CSV .*quote cells"),
        ("a.csv", "document,question,answer\nA,B,Ü\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", b"document;question;answer\nA;B;C\n", r"line 1: the cells are separated by ';', not by ','"),
        ("a.csv", b"document\tquestion\tanswer\nA\tB\tC\n", r"name it \.tsv"),
        ("a.tsv", b"document\tquestion\tquestion\nA\tB\tC\n", "a name for each column, each once"),
        ("a.csv", b"document,question,answer\n", "is empty: it has no rows"),
        ("a.csv", b"", "is empty: it has no rows"),
        ("a.csv", b"document,question,answer\nA,B, \n", r"a\.csv, line 2: the answer is empty; expected .*bad_rows"),
        ("a.arrow", b"nonsense", r"a\.arrow: not an arrow file"),
    ],
)
def test_a_malformed_table_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_samples(str(tmp_path / name)))
    assert name in str(caught.value)


def test_malformed_rows_of_a_table_can_be_skipped(tmp_path):
    (tmp_path / "a.csv").write_text("document,question,answer\nA,B,C\nA,B\nD,E,F\n")
    skipped = []
    assert [sample.answer for sample in read_samples(str(tmp_path / "a.csv"), skipped=skipped)] == ["C", "F"]
    assert len(skipped) == 1


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files of three kinds, one of them in a subfolder, beside what is no data."""
    (tmp_path / "own" / "more").mkdir(parents=True)
    write_table(tmp_path / "own" / "b.csv", ROWS[:1])
    write_jsonl(tmp_path / "own" / "more" / "c.jsonl", ROWS[1:])
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(str(tmp_path / "own" / "a.parquet"))
    (tmp_path / "own" / "README.md").write_text("About the data.")
    (tmp_path / "own" / "picture.png").write_bytes(b"x")
    return tmp_path / "own"


def test_a_folder_is_its_data_files_in_order(folder):
    samples = [*read_samples(str(folder))]
    assert texts(samples) == [EXPECTED[0], EXPECTED[0], EXPECTED[1]]
    assert [sample.id for sample in samples] == ["a.parquet:1", "b.csv:2", "c.jsonl:1"]


def test_a_folder_in_a_run_is_weighed_and_hashed_as_its_files(folder):
    read = corpus([str(folder)], mixture={"own": 2.0, "c": 1.0})
    read.check()
    assert [name for name, _ in read.train_content()] == ["a.parquet", "b.csv", "c.jsonl"]
    assert len(read.samples("train")) == 6
    before = read.contents("train")
    write_jsonl(folder / "more" / "c.jsonl", ROWS)
    after = corpus([str(folder)]).contents("train")
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize("saved", [False, True])
def test_splits_of_a_folder_are_kept_apart(tmp_path, saved):
    if saved:
        parts = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "own"))
    else:
        (tmp_path / "own").mkdir()
        write_jsonl(tmp_path / "own" / "train-00000-of-00001.jsonl", ROWS[:1])
        write_jsonl(tmp_path / "own" / "test-00000-of-00001.jsonl", ROWS[1:])
    path = str(tmp_path / "own")
    assert texts(read_samples(path)) == EXPECTED[:1]
    assert texts(read_samples(DataFile(path, split="test"))) == EXPECTED[1:]
    with pytest.raises(InputError, match=r"own has no split validation, but .*: set split"):
        list(read_samples(DataFile(path, split="validation")))


def test_a_data_set_that_was_saved_to_disk_is_a_folder(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "own"), num_shards=2)
    assert texts(read_samples(str(tmp_path / "own"))) == EXPECTED


def test_a_folder_without_data_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "empty"):
        path.mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"has no data files: expected \.json, "):
            list(read_samples(str(path)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "o/n", "streaming": True}, r"train_files\[0\]: streaming needs rows"),
        ({"path": "o/n", "streaming": True, "rows": 5, "split": "train[:9]"}, r"cannot be streamed: set rows"),
        ({"path": "o/n", "splt": "test"}, r"train_files\[0\] has the key 'splt': did you mean split\?"),
        ({"split": "test"}, r"train_files\[0\] is .*but must be a name, or a mapping with path"),
        ({"path": "a.csv", "rows": 0}, r"train_files\[0\]: rows is 0, but must be a whole number of at"),
        ({"path": "a.csv", "source": "csv"}, r"source is 'csv', but must be one of 'auto', 'longalign'"),
        ({"path": "a.csv", "template": "alpaca"}, r"template is 'alpaca', but must be one of 'auto'"),
        (5, r"train_files\[0\] is 5, but must be a name, or a mapping"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(entry, message):
    with pytest.raises(InputError, match=message):
        LongContextDataModule([entry])


def test_what_the_hub_alone_has_is_refused_for_a_file(tmp_path):
    file = write_table(tmp_path / "a.csv")
    for options in ({"streaming": True, "rows": 1}, {"split": "train"}, {"revision": "main"}, {"subset": "x"}):
        (name, *_) = options
        with pytest.raises(InputError, match=rf"a\.csv is a file of this machine, without {name}: leave {name} out"):
            list(read_samples(DataFile(file, **options)))


def test_each_file_has_its_own_names_and_template(tmp_path, tokenizer_dir):
    """One is a chat, one has names of its own, and one is chatml by choice."""
    mine = [{"context": "A text.", "query": "What?", "response": "That."}]
    chats = write_jsonl(tmp_path / "chats.jsonl", sample_rows()[:1])
    entries = [
        str(chats),
        {"path": write_table(tmp_path / "a.csv", mine), "fields": FIELDS},
        {"path": write_table(tmp_path / "b.csv", ROWS[:1]), "template": "chatml"},
    ]
    options = {"tokenizer": str(tokenizer_dir), "cache_dir": str(tmp_path / "cache"), "seq_len": 200, "extend": False}
    module = LongContextDataModule(entries, prepare_workers=1, **options)
    module.prepare_data()
    decoded = [module.tokenizer.decode(row.ids) for row in module.prepare("train")]
    assert decoded[0].startswith("<|im_start|>user\nHouse 0.0")
    assert decoded[1] == "A text.\n\nWhat? That.<|endoftext|>"
    assert decoded[2].endswith("Which?<|im_end|>\n<|im_start|>assistant\nThat; one.<|im_end|>")
    other = LongContextDataModule([entries[0], entries[1], entries[2]["path"]], prepare_workers=1, **options)
    other.prepare_data()
    assert other._key("train") != module._key("train")
    with pytest.raises(InputError, match=r"a\.csv, line 2: fields names the column 'wrong', the row has 'context'"):
        list(read_samples(DataFile(entries[1]["path"], fields=FIELDS | {"answer": "wrong"})))


FIELDS = {"document": "context", "question": "query", "answer": "response"}


def test_fields_rename_some_columns_and_those_of_other_formats(tmp_path):
    row = {"document": "A text.", "question": "What?", "response": "That.", "messages": "none"}
    (sample,) = read_samples(str(write_jsonl(tmp_path / "a.jsonl", [row])), fields={"answer": "response"})
    assert texts([sample]) == [("A text.\n\n", "What?", "That.")]
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    (sample,) = read_samples(str(write_jsonl(tmp_path / "b.jsonl", [{"chat": turns}])), fields={"messages": "chat"})
    assert (sample.answer, sample.kind) == ("That.", "chat")
    prose = write_jsonl(tmp_path / "c.jsonl", [{"content": "Prose."}])
    (sample,) = read_samples(str(prose), fields={"text": "content"})
    assert (sample.document, sample.kind) == ("Prose.", "text")


def test_the_saved_configuration_names_files_and_folders_wherever_it_is_read(folder, monkeypatch):
    """And the mixture by the same names; a hub id stays as it is."""
    monkeypatch.chdir(folder.parent)
    entries = [{"path": "own/b.csv", "fields": {"answer": "own"}}, "own", {"path": "owner/name"}]
    given = {"data": {"train_files": entries, "val_files": None, "mixture": {"own/b.csv": 2.0, "own": 1.0}}}
    data = with_absolute_paths(given)["data"]
    assert data["train_files"] == [
        {"path": str(folder / "b.csv"), "fields": {"answer": "own"}},
        str(folder),
        {"path": "owner/name"},
    ]
    assert data["mixture"] == {str(folder / "b.csv"): 2.0, str(folder): 1.0}
    assert corpus(data_files("x", data["train_files"][1:2]), mixture={str(folder): 0.0}).train_content()
