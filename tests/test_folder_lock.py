"""Two processes and one folder."""

import os
import subprocess
import sys

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.folder_lock import FolderLock

_HOLDER = """
import sys, pathlib
from lrsa_lightning.folder_lock import FolderLock
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


def test_a_second_process_is_told_who_writes_there(tmp_path):
    holder = hold(tmp_path / "x")
    with pytest.raises(InputError, match=rf"run .*x is being written by process {holder.pid} on .* since .*: wait"):
        FolderLock(tmp_path / "x", "run", "wait").acquire()
    FolderLock(tmp_path / "y", "run", "wait").acquire()
    holder.communicate("")


def test_a_killed_holders_lock_is_free(tmp_path):
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


def test_nothing_is_made_in_the_folder_itself(tmp_path):
    FolderLock(tmp_path / "x", "run", "wait").acquire()
    assert not (tmp_path / "x").exists()
