"""Disks that cannot be written: one error before the first step, one warning and a count after it."""

import errno
import os
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import append_text, write_text
from lrsa_lightning.files.disk import BestEffort, check_writable
from tests.runs import command


def test_checking_a_folder_leaves_it_as_it_was(tmp_path):
    check_writable(tmp_path / "runs" / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/sys/runs/x", "/proc/x", "file/x"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match=f"^{place} cannot be written"):
        check_writable(Path(place))


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize("option", [{"runs_dir": "/sys/runs"}, {"trainer.callbacks": "checkpoints elsewhere"}])
def test_a_run_that_could_not_write_fails_before_data_is_prepared(arguments, monkeypatch, capsys, option):
    monkeypatch.setattr(LongContextDataModule, "prepare_data", lambda self: pytest.fail("too late"))
    if "trainer.callbacks" in option:
        option = {"trainer.callbacks": '[{"class_path": "Checkpoints", "init_args": {"dirpath": "/sys/c"}}]'}
    with pytest.raises(SystemExit) as caught:
        main(command({**arguments, **option}))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_failures_are_reported_once_and_counted(caplog):
    effort = BestEffort("pictures")
    for _ in range(3):
        with effort.attempt():
            raise OSError(errno.ENOSPC, "No space left on device")
    with effort.attempt():
        pass
    effort.sum_up()
    effort.sum_up()
    assert [record.getMessage() for record in caplog.records] == [
        "pictures: not written ([Errno 28] No space left on device); training goes on",
        "pictures: 3 writes failed",
    ]
    with pytest.raises(ValueError, match="a bug"), effort.attempt():
        raise ValueError("a bug")


def test_a_text_is_on_the_disk_before_it_is_in_its_place(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace"]


def test_a_failed_write_of_a_text_keeps_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("cut", ["", '{"st', "x" * 10000])
def test_appended_lines_replace_a_truncated_one(tmp_path, cut):
    path = tmp_path / "new" / "lines"
    append_text(path, "one\n")
    with path.open("a") as file:
        file.write(cut)
    append_text(path, "two\nthree\n")
    assert path.read_text() == "one\ntwo\nthree\n"
    path.write_text(cut)
    append_text(path, "four\n")
    assert path.read_text() == "four\n"
