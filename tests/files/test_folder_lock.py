"""Two processes and one folder."""

import os
import subprocess
import sys

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.folder_lock import FolderLock

_HOLDER = """
import sys, pathlib
from lrsa_lightning.files.folder_lock import FolderLock
FolderLock(pathlib.Path(sys.argv[1]), "run", "wait").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_learns_who_writes_there(tmp_path):
    holder = hold(tmp_path / "x")
    with pytest.raises(InputError, match=rf"run .*x is being written by process {holder.pid} on .* since .*: wait"):
        FolderLock(tmp_path / "x", "run", "wait").acquire()
    FolderLock(tmp_path / "y", "run", "wait").acquire()
    holder.communicate("")


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = hold(tmp_path / "x")
    holder.kill()
    holder.wait()
    lock = FolderLock(tmp_path / "x", "run", "wait")
    lock.acquire()
    lock.acquire()  # again by the same process
    lock.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    lock = FolderLock(tmp_path / "x", "run", "wait")
    lock.acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    lock.release()
    other = hold(tmp_path / "x")
    other.communicate("")
    os.write(writer, b"x")
    os.waitpid(child, 0)


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^run .*/file/x cannot be written: Not a directory \("):
        FolderLock(tmp_path / "file/x", "run", "wait").acquire()


def test_releasing_a_lock_that_is_not_held_does_nothing(tmp_path):
    holder = hold(tmp_path / "x")
    FolderLock(tmp_path / "x", "run", "wait").release()
    assert (tmp_path / "x/.lock_holder.json").exists()
    holder.communicate("")


def test_folders_made_for_a_lock_are_removed_if_they_stay_empty(tmp_path):
    place = tmp_path / "runs/x"
    lock = FolderLock(place, "run", "wait")
    lock.acquire()
    lock.release()
    assert not place.parent.exists()
    lock.acquire()
    (place / "file").touch()
    lock.release()
    assert place.exists()
    hold(place).communicate("")
