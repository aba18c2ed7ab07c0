"""Checkpoints as files: complete or absent, and which one `last` means."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lrsa_lightning.checkpoints import atomic_files
from lrsa_lightning.checkpoints.atomic_files import AtomicFiles, link
from lrsa_lightning.checkpoints.last import Last, fault_of, find_last, read_index
from lrsa_lightning.errors import InputError


def write(folder: Path, step: int, when: int | None = None, **more) -> Path:
    path = folder / f"step={step}.ckpt"
    AtomicFiles().save_checkpoint({"global_step": step, "optimizer_states": [], "w": torch.zeros(9999), **more}, path)
    when = when if when is not None else 10**9 + step
    os.utime(path, ns=(when, when))
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path, 1)
    before = path.read_bytes()

    def break_off(checkpoint, partial):
        partial.write_bytes(before[:100])
        raise RuntimeError("broken off")

    monkeypatch.setattr(atomic_files, "write_synced", break_off)
    with pytest.raises(RuntimeError, match="broken off"):
        write(tmp_path, 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_distinguished_from_other_errors(tmp_path, monkeypatch, number):
    """torch raises a RuntimeError of its own while it handles the file's error."""

    def fill_up(checkpoint, partial):
        try:
            partial.write_bytes(b"half")
            raise OSError(number, "full")
        finally:
            raise RuntimeError("unexpected pos")

    monkeypatch.setattr(atomic_files, "write_synced", fill_up)
    files = AtomicFiles()
    files.save_checkpoint({}, tmp_path / "step=1.ckpt")
    assert files.disk_full.errno == number
    assert not list(tmp_path.iterdir())


def test_a_real_full_disk_is_seen_through_torch():
    files = AtomicFiles()
    with pytest.raises((OSError, RuntimeError)) as caught:
        atomic_files.write_synced({"w": torch.zeros(100000)}, Path("/dev/full"))
    assert atomic_files.disk_full(caught.value).errno == errno.ENOSPC
    assert files.disk_full is None


def test_a_write_is_beside_its_place_until_it_is_complete(tmp_path, monkeypatch):
    """The system's temporary folder would not do: a move from there is a copy."""
    seen = {}
    replace = os.replace

    def spy(source, target):
        seen.update(source=Path(source), complete=read_index(Path(source)) is not None, existed=Path(target).exists())
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    path = write(tmp_path, 1)
    assert seen == {"source": tmp_path / ".step=1.ckpt.partial", "complete": True, "existed": False}
    assert path.exists()


def test_last_is_what_the_link_names(tmp_path):
    """Copying a run may have given its files any order."""
    old, new = write(tmp_path, 2, when=10**18), write(tmp_path, 4, when=10**9)
    link(tmp_path / "last.ckpt", new)
    assert find_last(tmp_path).path == new
    assert old.exists()


def test_a_later_step_of_a_branch_that_was_left_is_not_last(tmp_path):
    """The run resumed from step 2: its earlier checkpoints are older than the link."""
    old = write(tmp_path, 4, when=10**9)
    link(tmp_path / "last.ckpt", write(tmp_path, 2, when=2 * 10**9))
    assert find_last(tmp_path).path == tmp_path / "step=2.ckpt"
    assert fault_of(old) is None


def test_last_is_a_later_one_that_was_written_before_the_link_was_switched(tmp_path):
    link(tmp_path / "last.ckpt", write(tmp_path, 2))
    newer = write(tmp_path, 4, when=2 * 10**18)
    assert find_last(tmp_path) == Last(newer, [])


@pytest.mark.parametrize("corrupt", ["half", "empty", "index"])
def test_a_corrupt_checkpoint_is_never_last(tmp_path, corrupt):
    good, bad = write(tmp_path, 2), write(tmp_path, 4)
    link(tmp_path / "last.ckpt", bad)
    os.truncate(bad, {"half": bad.stat().st_size // 2, "empty": 0, "index": bad.stat().st_size - 5}[corrupt])
    assert find_last(tmp_path) == Last(good, ["step=4.ckpt"])


def test_without_a_link_last_is_the_newest(tmp_path):
    write(tmp_path, 9, when=1)
    newest = write(tmp_path, 4, when=2)
    (tmp_path / ".step=5.ckpt.partial").write_bytes(b"PK")
    assert find_last(tmp_path) == Last(newest, [".step=5.ckpt.partial"])
    (tmp_path / "last.ckpt").symlink_to("step=77.ckpt")
    assert find_last(tmp_path).path == newest


def write_by_others(path: Path, **more) -> Path:
    """A complete checkpoint with a class that only code could load."""
    torch.save({"global_step": 4, "optimizer_states": [], "callbacks": {"X": {"at": Path("a"), **more}}}, path)
    return path


def test_a_complete_checkpoint_that_cannot_be_loaded_is_not_corrupt(tmp_path):
    good = write(tmp_path, 2)
    bad = write_by_others(tmp_path / "step=4.ckpt")
    assert "is complete, but holds pathlib" in fault_of(bad)
    last = find_last(tmp_path)
    assert (last.path, last.skipped, last.is_blocked) == (good, ["step=4.ckpt"], False)
    assert last.check(tmp_path) is last
    assert "step=4.ckpt is complete, but holds pathlib" in last.warning()


@pytest.mark.parametrize("kind", ["corrupt", "complete", "both", "link", "universal", "weights"])
def test_a_run_does_not_start_over_beside_checkpoints_it_cannot_load(tmp_path, kind):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if kind in ("corrupt", "both"):
        cut(write(folder, 2))
    if kind in ("complete", "both"):
        write_by_others(folder / "step=4.ckpt")
    if kind == "link":
        (folder / "last.ckpt").symlink_to(write_by_others(tmp_path / "elsewhere.ckpt"))
    if kind == "universal":
        (folder / "step=2.universal").mkdir()
        (folder / "step=2.universal" / "latest_universal").touch()
    if kind == "weights":
        torch.save({"global_step": 4, "state_dict": {}}, folder / "weights.ckpt")
    last = find_last(folder)
    with pytest.raises(InputError, match="holds checkpoints, but none to resume from"):
        last.check(folder)
    assert last.is_blocked == (kind != "corrupt")


def test_a_run_may_start_where_only_an_interrupted_write_is(tmp_path):
    (tmp_path / ".step=2.ckpt.partial").write_bytes(b"PK")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    assert find_last(tmp_path).check(tmp_path) == Last(None, [".step=2.ckpt.partial"])


def test_the_command_in_the_message_makes_a_checkpoint_plain(tmp_path):
    path = write_by_others(tmp_path / "step=4.ckpt", score=np.float64(1))
    program = fault_of(path).split('python -c "')[1].removesuffix('"')
    exec(program)
    assert find_last(tmp_path).path == path
    assert torch.load(path, weights_only=True)["callbacks"] == {"X": {"at": "a", "score": 1.0}}


def test_a_checkpoint_is_on_the_disk_before_it_is_in_its_place(tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append("fsync of " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    write(tmp_path, 1)
    assert calls == ["fsync of .step=1.ckpt.partial", "replace", f"fsync of {tmp_path.name}"]
    calls.clear()
    link(tmp_path / "last.ckpt", tmp_path / "step=1.ckpt")
    assert calls == ["replace", f"fsync of {tmp_path.name}"]


def test_a_part_that_could_not_be_loaded_again_is_left_out_and_named(tmp_path):
    with pytest.raises(InputError, match=r"callbacks\['X'\]\['at'\] is a slice .* was saved without it"):
        write(tmp_path, 2, callbacks={"X": {"at": slice(1)}, "Y": {"n": 1}})
    assert find_last(tmp_path).path == tmp_path / "step=2.ckpt"
    assert read_index(tmp_path / "step=2.ckpt")["callbacks"] == {"Y": {"n": 1}}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_also_fails_at_the_clean_up_is_noted(tmp_path, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, "gone")

    for owner, name in ((atomic_files, "write_synced"), (Path, "unlink"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, fail)
    files = AtomicFiles()
    files.save_checkpoint({}, tmp_path / "step=1.ckpt")
    assert files.disk_full.errno == number


def test_weights_alone_are_not_last(tmp_path):
    full = write(tmp_path, 2)
    torch.save({"global_step": 4, "state_dict": {}}, tmp_path / "weights.ckpt")
    assert find_last(tmp_path).path == full


def test_a_link_is_switched_at_once(tmp_path, monkeypatch):
    """Lightning's removes the old one first: a run killed between the two has no last checkpoint."""
    name, first, second = tmp_path / "last.ckpt", write(tmp_path, 2), write(tmp_path, 4)
    link(name, first)
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail("x") if not name.exists() else None)
    link(name, second)
    assert name.resolve() == first
