"""Checkpoints of several ranks: a folder appears, is replaced and is removed as one."""

import os
import shutil
from pathlib import Path

import pytest

from lrsa_lightning.checkpoints import atomic_files
from lrsa_lightning.checkpoints.atomic_files import (
    TAG,
    Written,
    link,
    make_empty,
    partial_of,
    publish,
    read_written,
    remove,
)
from lrsa_lightning.checkpoints.last import Last, fault_of, find_last, step_of
from tests.checkpoints.test_checkpoint_files import write_by_others


def test_a_zero_folder_is_complete_once_latest_is_written(tmp_path):
    for step in (2, 4):
        (tmp_path / f"step={step}.ckpt" / "checkpoint").mkdir(parents=True)
    (tmp_path / "step=2.ckpt" / "latest").write_text("checkpoint")
    assert find_last(tmp_path) == Last(tmp_path / "step=2.ckpt", ["step=4.ckpt"])


def write_folder(folder: Path, step: int) -> Path:
    path = folder / f"step={step}.ckpt"
    make_empty(partial_of(path))
    (partial_of(path) / TAG).mkdir()
    for rank in range(2):
        (partial_of(path) / TAG / f"shard-{rank}.pt").write_bytes(bytes(100 + rank))
    publish(partial_of(path), path, Written(step, world_size=2, stage=2))
    return path


def test_a_folder_appears_with_all_its_files(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: seen.append(step_of(source)) or replace(source, target))
    path = write_folder(tmp_path, 3)
    assert seen == [3]
    assert (read_written(path).world_size, read_written(path).sizes["checkpoint/shard-1.pt"]) == (2, 101)
    assert [file.name for file in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_a_folder_replaces_another_of_its_step(tmp_path):
    (write_folder(tmp_path, 3) / "old").touch()
    assert not (write_folder(tmp_path, 3) / "old").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_a_folder_leaves_its_place_before_its_files_are_removed(tmp_path, monkeypatch):
    path = write_folder(tmp_path, 3)
    monkeypatch.setattr(shutil, "rmtree", lambda folder: seen.append(folder))
    seen = []
    remove(path)
    assert seen == [partial_of(path)]
    assert not path.exists()


@pytest.mark.parametrize("harm", ["cut", "missing", "no list", "foreign"])
def test_a_corrupt_folder_is_never_last(tmp_path, harm):
    good, bad = write_folder(tmp_path, 2), write_folder(tmp_path, 4)
    link(tmp_path / "last.ckpt", bad)
    if harm == "cut":
        os.truncate(bad / TAG / "shard-1.pt", 100)
    elif harm == "missing":
        (bad / TAG / "shard-1.pt").unlink()
    elif harm == "foreign":
        make_empty(partial_of(bad))
        (partial_of(bad) / TAG).mkdir()
        write_by_others(partial_of(bad) / TAG / "mp_rank_00_model_states.pt")
        publish(partial_of(bad), bad, Written(4, world_size=1, stage=2))
        assert "is complete, but holds pathlib" in fault_of(bad)
    else:
        os.truncate(bad / "written.json", 10)
    assert fault_of(bad)
    assert find_last(tmp_path) == Last(good, ["step=4.ckpt"])


def test_a_folder_is_on_the_disk_before_it_is_in_its_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(atomic_files, "sync", lambda path: calls.append(path.name))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    write_folder(tmp_path, 1)
    assert calls[-2:] == ["replace", tmp_path.name]
    assert {"shard-0.pt", "shard-1.pt", "written.json", "latest", TAG} <= {*calls[:-2]}
