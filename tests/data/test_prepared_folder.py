"""Prepared folders: made by one process at a time, checked when found again, cleared of what killed ones left."""

import multiprocessing
import os
import select
import signal
import time
from pathlib import Path

import pytest

from lrsa_lightning.data.encoder import NothingToLearn, TokenizedSample
from lrsa_lightning.data.prepared import prepare
from lrsa_lightning.data.prepared_folder import alone, find_complete
from lrsa_lightning.errors import InputError

SAMPLES = range(20)


def encode(sample: int) -> TokenizedSample:
    return TokenizedSample([sample, 1, 2], 1 + sample % 2)


def rows(prepared) -> list:
    return [(list(row.ids), row.num_labels) for row in prepared]


def damages(folder: Path) -> list[tuple[str, bytes]]:
    """Names of files and what they hold: cut short, empty, and with one bit turned over, at places all over."""
    cases = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        cases += [(path.name, content[:-1]), (path.name, b"")]
        for at in (0, 1, len(content) // 3, len(content) // 2, len(content) - 2):
            cases.append((path.name, content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]))
    return cases


def test_a_corrupt_folder_is_prepared_anew(tmp_path, caplog):
    folder = tmp_path / "prepared" / "a"
    expected = rows(prepare(folder, SAMPLES, encode))
    for name, content in damages(folder):
        caplog.clear()
        (folder / name).write_bytes(content)
        assert rows(prepare(folder, SAMPLES, encode)) == expected, name
        assert f"prepared data {folder} is corrupt" in caplog.text
    assert [path.name for path in folder.parent.iterdir()] == ["a"]
    for name in [path.name for path in folder.iterdir()]:
        (folder / name).unlink()
        assert rows(prepare(folder, SAMPLES, encode)) == expected, name


def test_a_complete_folder_is_used_as_it_is(tmp_path, caplog):
    first = prepare(tmp_path / "a", SAMPLES, encode)
    caplog.clear()
    again = prepare(tmp_path / "a", [], None)
    assert rows(again) == rows(first)
    assert (again.report, again.content) == (first.report, first.content)
    assert not caplog.records


def test_the_content_tells_samples_apart(tmp_path):
    contents = {
        prepare(tmp_path / str(i), samples, function).content
        for i, (samples, function) in enumerate(
            [
                (SAMPLES, encode),
                (SAMPLES[::-1], encode),
                (SAMPLES[1:], encode),
                (SAMPLES, lambda sample: TokenizedSample([sample, 1, 2], 1)),
            ]
        )
    }
    assert len(contents) == 4
    assert prepare(tmp_path / "again", SAMPLES, encode, num_workers=2).content in contents


def test_files_that_are_not_of_prepared_data_are_never_removed(tmp_path):
    folder = tmp_path / "prepared" / "a"
    prepare(folder, SAMPLES, encode)
    (folder / "samples.arrow").write_bytes(b"")
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=rf"{folder} is corrupt and holds files"):
        prepare(folder, SAMPLES, encode)
    assert (folder / "mine.txt").read_text() == "keep"


def test_only_leftovers_of_dead_processes_are_cleared(tmp_path):
    prepared = tmp_path / "prepared"
    keys = [f"train-{digit * 20}" for digit in "abc"]
    dead, live, foreign, other = (
        prepared / f".{keys[0]}-aaaaaaaa",
        prepared / f".{keys[1]}-bbbbbbbb",
        prepared / f".{keys[2]}-cccccccc",
        prepared / ".config-dddddddd",
    )
    for folder in (dead, foreign, other):
        folder.mkdir(parents=True)
    (dead / "samples.arrow").write_bytes(b"half")
    (foreign / "mine.txt").write_text("keep")
    holder = multiprocessing.get_context("fork").Process(target=hold, args=[prepared / keys[1]])
    holder.start()
    try:
        wait_until((tmp_path / "held").exists)
        live.mkdir()
        prepare(prepared / "a", SAMPLES, encode)
    finally:
        holder.kill()
        holder.join()
    assert [folder.exists() for folder in (dead, live, foreign, other)] == [False, True, True, True]
    prepare(prepared / "b", SAMPLES, encode)
    assert not live.exists()


def hold(folder: Path) -> None:
    with alone(folder):
        (folder.parent.parent / "held").touch()
        time.sleep(60)


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def start(folder: Path, begun: Path, seconds: float) -> multiprocessing.Process:
    def slow(sample):
        begun.touch()
        time.sleep(seconds)
        return encode(sample)

    process = multiprocessing.get_context("fork").Process(target=prepare, args=[folder, SAMPLES, slow, 2])
    process.start()
    return process


def test_after_a_kill_the_workers_end_and_the_next_process_prepares_and_clears(tmp_path):
    folder = tmp_path / "prepared" / "a"
    at_end, held_by_all = os.pipe()
    killed = start(folder, tmp_path / "begun", 1)
    os.close(held_by_all)
    wait_until((tmp_path / "begun").exists)
    killed.kill()
    killed.join()
    assert not folder.exists()
    assert [path.name[:3] for path in folder.parent.iterdir()] == [".a-"]
    after = start(folder, tmp_path / "after", 0)
    after.join(15)
    after.kill()
    assert after.exitcode == 0
    assert [path.name for path in folder.parent.iterdir()] == ["a"]
    assert select.select([at_end], [], [], 15)[0], "a worker goes on without its parent"
    os.close(at_end)


def test_one_of_two_processes_prepares_and_the_other_waits(tmp_path):
    folder = tmp_path / "prepared" / "a"
    first = start(folder, tmp_path / "first", 0.05)
    wait_until((tmp_path / "first").exists)
    second = start(folder, tmp_path / "second", 0.05)
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert not (tmp_path / "second").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_a_worker_that_is_killed_is_one_error(tmp_path):
    def dies(sample):
        if sample == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(sample)

    with pytest.raises(InputError, match=r"was killed.*data\.prepare_workers"):
        prepare(tmp_path / "prepared" / "a", SAMPLES, dies, 2)
    assert list((tmp_path / "prepared").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_malformed_sample_is_one_error_from_any_process_or_is_counted(tmp_path, workers):
    def refuses(sample):
        if sample == 9:
            raise NothingToLearn("f:9: nothing to learn")
        return encode(sample)

    with pytest.raises(InputError, match=r"^f:9: nothing to learn$"):
        prepare(tmp_path / "prepared" / "a", SAMPLES, refuses, workers)
    assert list((tmp_path / "prepared").iterdir()) == []
    prepared = prepare(tmp_path / "prepared" / "a", SAMPLES, refuses, workers, skip_malformed=True)
    assert prepared.report == {"read": 20, "kept": 19, "left out": 0, "shortened": 0, "malformed": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_that_counts_as_complete(tmp_path, workers):
    def interrupted(sample):
        if sample == 9:
            raise KeyboardInterrupt
        return encode(sample)

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "prepared" / "a", SAMPLES, interrupted, workers)
    assert list((tmp_path / "prepared").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written .*data\.cache_dir"):
        prepare(tmp_path / "cache" / "prepared" / "a", SAMPLES, encode)


def test_a_missing_folder_is_not_complete(tmp_path):
    assert not find_complete(tmp_path / "a")
