"""`lrsa recipe`, from its options to a run."""

import json

import pytest

from lrsa_lightning.cli import main
from tests.recipe.conftest import squad_content
from tests.refusals import refused


@pytest.fixture
def options(files, tokenizer_dir, in_tmp_path):
    options = {"tokenizer": tokenizer_dir, "output": "data", "length": 600, "num_rows": 16, "num_val_rows": 2}
    options |= {"workers": 1, **files}
    return options


def command(options) -> list[str]:
    return ["recipe", *(f"--{key}={value}" for key, value in options.items())]


def test_the_same_recipe_is_made_once_and_another_is_refused(options, tmp_path, capsys, files):
    main(command(options))
    made = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert made.keys() == {"train.jsonl", "val.jsonl", "recipe.json", *(path.name for path in files.values())}
    assert sum(json.loads(made["recipe.json"])["rows"]["train.jsonl"]["kinds"].values()) == 16
    capsys.readouterr()
    main(command(options))
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == made
    assert "data/train.jsonl: " in capsys.readouterr().out
    said = "holds another recipe (seed): give another --output"
    refused(capsys, lambda: main(command(options | {"seed": 1})), said)


def test_wrong_files_are_refused_before_rows_are_made(options, capsys, tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "one.json").write_text(json.dumps(squad_content(1)))
    for wrong, said in {
        "missing.json": "squad file missing.json does not exist",
        "other.json": "expected SQuAD v2.0",
        "one.json": "--squad: a part of the file has 0 questions that have an answer",
    }.items():
        refused(capsys, lambda squad=wrong: main(command(options | {"squad": squad})), said)
        assert not (tmp_path / "data").exists()
