"""Samples on disk: made once, reused, never mistaken for others."""

import copy
import json
import os
import select
import time
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count, product
from multiprocessing import get_context
from threading import Event
from types import SimpleNamespace

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler import store as module
from lrsa_lightning.ruler.samples import SampleSettings, digest
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore, make_in_parallel

TASK = "niah_single_1"


@pytest.fixture
def made(monkeypatch):
    """Counts the times samples are made."""
    calls = []

    class CountingMaker(module.SampleMaker):
        def make(self, num_samples, made):
            calls.append(num_samples)
            return super().make(num_samples, made)

    monkeypatch.setattr(module, "SampleMaker", CountingMaker)
    return calls


def test_samples_are_made_once_and_more_only_when_needed(tokenizer, tmp_path, made):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    expected = make_samples(TASK, tokenizer, 640, 4)
    assert store.samples(TASK, 640, 3) == expected[:3]
    assert store.samples(TASK, 640, 2) == expected[:2]
    assert SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 640, 3) == expected[:3]
    assert store.samples(TASK, 640, 4) == expected
    assert made == [3, 4]


def test_a_second_process_waits_for_the_samples_that_one_is_making(tokenizer, tmp_path, monkeypatch, made, caplog):
    """Without a collective, which would time out: by the lock of the operating system."""
    caplog.set_level("INFO", "lrsa_lightning")
    begun, may_go_on = Event(), Event()
    fit = module.SampleMaker._fit

    def slow(self, *args):
        begun.set()
        assert may_go_on.wait(60)
        return fit(self, *args)

    monkeypatch.setattr(module.SampleMaker, "_fit", slow)
    stores = [SampleStore(tmp_path, tokenizer, SampleSettings()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        maker = pool.submit(stores[0].samples_that_fit, [(TASK, 640)], 2, None)
        assert begun.wait(60)
        waiting = pool.submit(stores[1].samples_that_fit, [(TASK, 640)], 2, None, announces=False)
        assert not wait([waiting], 0.3).done
        may_go_on.set()
        assert maker.result() == waiting.result()
    assert made == [2]
    assert [record.message for record in caplog.records] == [f"RULER: making 2 samples each of {TASK}/640"]


def test_a_folder_that_cannot_be_written_is_read(tokenizer, tmp_path, monkeypatch):
    expected = SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 640, 2)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    assert SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 640, 2) == expected


def test_making_samples_logs_its_progress(tokenizer, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "lrsa_lightning")
    clock = count(step=4)  # seconds
    monkeypatch.setattr("lrsa_lightning.ruler.progress.monotonic", lambda: float(next(clock)))
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    store.samples(TASK, 1024, 3)
    store.samples_that_fit([(TASK, 640), (TASK, 100), (TASK, 1024)], 3, [].append, announces=False)
    lines = [record.message for record in caplog.records]
    assert lines == [f"RULER samples: 3 of 6 samples done ({TASK}/640), 0:00:12 left"]


def test_the_file_has_rulers_fields_and_the_manifest_its_settings(tokenizer, tmp_path):
    SampleStore(tmp_path, tokenizer, SampleSettings(seed=7)).samples(TASK, 640, 2)
    rows = [json.loads(line) for line in (tmp_path / "640" / TASK / "validation.jsonl").read_text().splitlines()]
    official = {"index", "input", "outputs", "length", "length_w_model_temp", "answer_prefix", "token_position_answer"}
    assert all(row.keys() >= official for row in rows)
    manifest = json.loads((tmp_path / "640" / TASK / "manifest.json").read_text())
    assert (manifest["seed"], manifest["num_samples"], manifest["length"]) == (7, 2, 640)


def test_samples_of_other_settings_are_refused(tokenizer, tmp_path):
    SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 640, 2)
    other = SampleStore(tmp_path, tokenizer, SampleSettings(seed=1, template="chatml"))
    with pytest.raises(InputError, match=r"640/niah_single_1/validation.jsonl.*\(seed, template\)"):
        other.samples(TASK, 640, 2)


def test_a_file_that_was_changed_is_refused(tokenizer, tmp_path):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    store.samples(TASK, 640, 2)
    with store.path(TASK, 640).open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="sha256"):
        store.samples(TASK, 640, 2)


def test_each_setting_has_its_own_folder_in_a_cache(tokenizer, tmp_path):
    settings = [SampleSettings(), SampleSettings(seed=1), SampleSettings(template="chatml")]
    folders = {SampleStore.in_cache(tmp_path, tokenizer, one).folder for one in settings}
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (SampleSettings(), "66bdd20c123e9f8dffa6"),
        (SampleSettings(seed=3, template="chatml"), "eef905477e945f9be41b"),
    ],
)
def test_samples_of_earlier_versions_are_found_again(tmp_path, settings, folder):
    """Literals of the last version that had the option official_compat. A resumed run must find its samples."""
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: "tokenizer"), chat_template=None)
    store = SampleStore.in_cache(tmp_path, tokenizer, settings)
    assert store.folder.name == folder
    assert json.dumps(store.manifest(TASK) | {"tokenizer": "t"}) == (
        f'{{"format": 1, "task": "niah_single_1", "seed": {settings.seed}, "template": "{settings.template}", '
        '"official_compat": false, "tokenizer": "t", "files": {}}'
    )


def test_a_sample_keeps_the_digest_of_earlier_versions():
    row = {"input": "One of 1234567.", "answer_prefix": " It is", "outputs": ["1234567"], "answer": " 1234567"}
    assert digest(row | {"id": "vt-640-42-0", "length": 150}) == "0d17ba0e4451222d"


def test_samples_of_official_compat_are_refused(tokenizer, tmp_path):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    store.samples(TASK, 640, 1)
    path = store.path(TASK, 640).with_name("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"official_compat": True}))
    with pytest.raises(InputError, match=r"samples of other settings \(official_compat\)"):
        store.samples(TASK, 640, 1)


def other_text(path):
    path.write_text(json.dumps({"text": "Another essay. " * 40} if path.stem == "essays" else {"0": "another"}))
    return path


def test_each_source_and_chat_template_has_its_own_folder_in_a_cache(tokenizer, source_files, tmp_path):
    def place(own=tokenizer, **files):
        sources = Sources(**{**source_files, **files})
        return SampleStore.in_cache(tmp_path, own, SampleSettings(sources=sources)).folder

    changed = copy.deepcopy(tokenizer)
    changed.chat_template += " "
    swapped = {"squad": source_files["squad"].with_name("other_squad.json")}
    swapped["squad"].write_text(source_files["squad"].read_text() + " ")
    hotpotqa = tmp_path / "hotpotqa.json.gz"
    hotpotqa.write_bytes(source_files["hotpotqa"].read_bytes() + b" ")
    texts = [{name: other_text(tmp_path / f"{name}.json")} for name in ("essays", "english_words")]
    places = [place(), place(changed), place(**swapped), place(hotpotqa=hotpotqa), *(place(**files) for files in texts)]
    assert len(set(places)) == len(places)


def test_samples_of_a_source_that_changed_are_refused(tokenizer, tmp_path):
    path = tmp_path / "essays.json"
    for text, is_first in (("The first essay. ", True), ("The other essay. ", False)):
        path.write_text(json.dumps({"text": text * 40}))
        store = SampleStore(tmp_path / "samples", tokenizer, SampleSettings(sources=Sources(essays=path)))
        if is_first:
            store.samples("niah_single_2", 640, 1)
    with pytest.raises(InputError, match=r"other settings \(files\)"):
        store.samples("niah_single_2", 640, 1)


def test_a_kill_between_manifest_and_samples_leaves_no_samples_of_another_manifest(tokenizer, tmp_path, monkeypatch):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    store.samples(TASK, 640, 1)

    def killed(path, text):
        if path.suffix == ".jsonl":
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        store.samples(TASK, 640, 2)
    monkeypatch.undo()
    assert len(store.samples(TASK, 640, 2)) == 2


def test_several_processes_make_the_same_files(tokenizer, tmp_path):
    one, several = (SampleStore(tmp_path / name, tokenizer, SampleSettings()) for name in ("one", "several"))
    paths = list(make_in_parallel(several, product([TASK, "niah_multikey_2"], [640, 1024]), 2, 2))
    assert len(paths) == 4
    for path in paths:
        one.samples(path.parent.name, int(path.parent.parent.name), 2)
        assert path.read_bytes() == (tmp_path / "one" / path.relative_to(tmp_path / "several")).read_bytes()
    with pytest.raises(InputError, match="at length 100"):
        list(make_in_parallel(several, [(TASK, 100)], 1, 2))


def test_many_samples_are_made_by_several_processes(tokenizer, tmp_path, monkeypatch, caplog, made):
    caplog.set_level("INFO", "lrsa_lightning")
    cells, skipped = [(TASK, 640), (TASK, 100), ("niah_multikey_2", 1024)], []
    expected = SampleStore(tmp_path / "one", tokenizer, SampleSettings()).samples_that_fit(cells, 2, skipped.append)
    monkeypatch.setattr(module, "_WORTH_PROCESSES", 3000)
    monkeypatch.setattr("lrsa_lightning.ruler.progress._EVERY_S", 0)
    store = SampleStore(tmp_path / "several", tokenizer, SampleSettings())
    assert store.samples_that_fit(cells, 2, skipped.append, num_workers=2) == expected
    assert [line.split(": needs")[0] for line in skipped] == [f"RULER {TASK} at length 100"] * 2
    assert made == [2] * (3 + 1)  # of the second store, this process tried only what does not fit
    lines = [record.message.split(" (")[0] for record in caplog.records[-2:]]
    assert lines == [f"RULER samples: {number} of 6 samples done" for number in (2, 4)]


def test_after_a_kill_the_processes_end_and_the_samples_can_be_made(tokenizer, tmp_path, monkeypatch):
    def slow(*_):
        (tmp_path / "begun").touch()
        time.sleep(60)

    store = SampleStore(tmp_path / "samples", tokenizer, SampleSettings())
    at_end, held_by_all = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(module.SampleMaker, "_fit", slow)
        arguments = store, [(TASK, 640), (TASK, 1024)], 1, 2
        killed = get_context("fork").Process(target=lambda: list(make_in_parallel(*arguments)))
        killed.start()
    os.close(held_by_all)
    end = time.monotonic() + 30
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    killed.kill()
    killed.join()
    assert select.select([at_end], [], [], 15)[0], "a process goes on without its parent"
    os.close(at_end)
    assert len(store.samples(TASK, 640, 1)) == 1


def test_a_folder_that_was_renamed_to_another_length_is_refused(tokenizer, tmp_path):
    SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 640, 2)
    (tmp_path / "640").rename(tmp_path / "1024")
    with pytest.raises(InputError, match=r"1024/niah_single_1/validation.jsonl.*\(length\)"):
        SampleStore(tmp_path, tokenizer, SampleSettings()).samples(TASK, 1024, 2)


@pytest.mark.parametrize("content", [None, "{", "[]", "\udcff"])
def test_a_manifest_that_is_missing_or_damaged_is_named(tokenizer, tmp_path, content):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    store.samples(TASK, 640, 2)
    manifest = store.path(TASK, 640).with_name("manifest.json")
    manifest.unlink()
    if content is not None:
        manifest.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"manifest\.json"):
        store.samples(TASK, 640, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": "1234567"}, "outputs is '1234567', expected a list"),
        ({"outputs": []}, r"outputs are \[\]"),
        ({"outputs": [1]}, r"outputs are \[1\]"),
        ({"input": None}, "input is None, expected a str"),
        ({"task": "vt"}, "a sample of vt at length 640"),
        ({"max_length": 4096}, "a sample of niah_single_1 at length 4096"),
    ],
)
def test_a_row_of_wrong_values_is_named_though_the_manifest_agrees(tokenizer, tmp_path, change, message):
    store = SampleStore(tmp_path, tokenizer, SampleSettings())
    rows = store.samples(TASK, 640, 2)
    store._write(TASK, 640, [rows[0], rows[1] | change])
    with pytest.raises(InputError, match=rf"validation\.jsonl, line 2: {message}"):
        store.samples(TASK, 640, 2)
