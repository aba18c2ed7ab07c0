"""Where an export goes: an earlier export may be replaced, at once, and nothing else is deleted."""

import json
import os
from pathlib import Path

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.place import MANIFEST, check_place, written_at_once


@pytest.fixture
def output(tmp_path) -> Path:
    """The place of an export of two files."""
    export(tmp_path / "out", "old")
    return tmp_path / "out"


def export(output: Path, text: str, also: str = "inner/code") -> None:
    with written_at_once(output, {"run": "x"}) as folder:
        (folder / "inner").mkdir()
        (folder / "weights").write_text(text)
        (folder / also).write_text(text)


def test_the_manifest_says_what_belongs_to_the_export(output):
    assert json.loads((output / MANIFEST).read_text()) == {"run": "x", "files": ["inner/code", "weights"]}


def test_an_earlier_export_is_replaced_if_asked(output):
    with pytest.raises(InputError, match="out exists: give a new --output, or --overwrite"):
        check_place(output, overwrite=False)
    check_place(output, overwrite=True)
    export(output, "new")
    assert [(output / name).read_text() for name in ("weights", "inner/code")] == ["new", "new"]
    assert [*output.parent.iterdir()] == [output]


@pytest.mark.parametrize("name", ["mine.txt", "inner/mine.txt", ".hidden"])
def test_a_file_of_the_users_own_in_it_is_not_deleted(output, name):
    (output / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name} beside the files of an export"):
        check_place(output, overwrite=True)


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}", '{"files": 3}'])
def test_what_is_no_export_is_not_deleted(tmp_path, manifest):
    (tmp_path / "weights").write_text("mine")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match="is no export of ours, so --overwrite does not delete it"):
        check_place(tmp_path, overwrite=True)


def test_a_link_and_a_file_are_not_replaced(output, tmp_path):
    (tmp_path / "link").symlink_to(output)
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(InputError, match="no export of ours"):
            check_place(tmp_path / name, overwrite=True)


def test_an_export_that_fails_leaves_the_earlier_one(output):
    (output.parent / "blocked").write_text("")
    with pytest.raises(NotADirectoryError):
        export(output, "new", also="../blocked/code")
    assert (output / "weights").read_text() == "old"
    assert {*output.parent.iterdir()} == {output, output.parent / "blocked"}


def test_the_earlier_export_is_there_until_the_new_one_is_complete(output, monkeypatch):
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        seen.append((Path(source).name, sorted(path.name for path in Path(source).iterdir())))
        replace(source, target)

    monkeypatch.setattr("lrsa_lightning.model_folder.place.os.replace", watched)
    export(output, "new")
    complete = sorted(["inner", "weights", MANIFEST])
    assert [files for _, files in seen[:2]] == [complete, complete]
    assert seen[0][0] == "out"


def test_a_folder_left_by_a_killed_export_is_no_obstacle(output):
    earlier = output.with_name(".out.earlier")
    earlier.mkdir()
    (earlier / "weights").write_text("older")
    export(output, "new")
    assert [*output.parent.iterdir()] == [output]
