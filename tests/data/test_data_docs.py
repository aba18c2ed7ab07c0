"""docs/data.md: its files are read in the format that it says, and its commands run on them."""

import re
import shlex
from pathlib import Path

import datasets
import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.data.data_file import SUFFIXES
from lrsa_lightning.data.formats import FORMATS
from lrsa_lightning.data.sources import read_samples

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'```\w+ title="(\S+)"\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = re.findall(r"^lrsa (?:inspect|prepare) .*$", PAGE, re.MULTILINE)
ROWS = [name for name in FILES if not name.endswith(("yaml", "csv"))]


@pytest.fixture
def written(in_tmp_path, tmp_path, tokenizer, monkeypatch):
    """A folder with the files of the page, and a hub with owner/name."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(tmp_path / "Qwen" / "Qwen2.5-0.5B")
    load = datasets.load_dataset

    def load_dataset(path, name, split, revision, streaming):
        assert path == "owner/name"
        return load("json", data_files={"train": ["own.jsonl"] * 12}, split=split, streaming=streaming)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("lrsa_lightning.data.hub_rows.before_loading", lambda name: None)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(written, line, capsys):
    _, *arguments = shlex.split(line)
    main([*arguments, "--data.tokenizer", "Qwen/Qwen2.5-0.5B", "--data.seq_len", "200", "--data.prepare_workers", "1"])
    out = capsys.readouterr().out
    assert "samples" in out
    if arguments[0] == "inspect":
        assert ">>>" in out
        assert "chatml" in out
    elif "owner/name" in line:
        assert re.search(rf"train: {4 if 'streaming' in line else 1} samples", out)


@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_of_the_format_of_the_table(written, name):
    (sample,) = read_samples(name)
    columns = set(re.findall(r'"(\w+)": ', FILES[name].split("[")[0] + "{}"))
    ((source, form),) = [(key, form) for key, form in FORMATS.items() if set(form.columns) <= columns]
    assert re.search(rf"^\| `{source}` \| .*`{form.columns[0]}`", PAGE, re.MULTILINE)
    assert "house" in (sample.document + sample.question)


def test_the_page_has_each_format_and_each_kind_of_file():
    assert len(COMMANDS) == 5
    assert len(ROWS) == len(FORMATS)
    for source, form in FORMATS.items():
        assert f"`{source}`" in PAGE
        assert all(f"`{column}`" in PAGE for column in form.columns)
    for suffix in SUFFIXES:
        assert f"`{suffix}`" in PAGE
