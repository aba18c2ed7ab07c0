"""What the results in a folder depend on: a later call brings more tasks, but no other files for the same ones."""

import json
from types import SimpleNamespace

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.command import _source_hashes
from lrsa_lightning.ruler.evaluation import EvaluationFolder
from lrsa_lightning.ruler.evaluator import Share
from lrsa_lightning.ruler.samples import SampleSettings
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore
from tests.test_folder_lock import hold

NOTHING = SimpleNamespace(evaluate=lambda *_: iter(()))


def use(folder, settings: dict, sources: dict) -> dict:
    """The settings that lie in the folder after a call with these."""
    list(EvaluationFolder(folder, settings, sources).run(NOTHING, None, Share(), True, True))
    return json.loads((folder / "settings.json").read_text())


def test_further_files_are_added_and_others_refused_by_name(tmp_path):
    assert use(tmp_path, {"model": "a"}, {"squad": "1"}) == {"model": "a", "sources": {"squad": "1"}}
    both = {"model": "a", "sources": {"squad": "1", "essays": "2"}}
    assert use(tmp_path, {"model": "a"}, {"essays": "2"}) == both
    with pytest.raises(InputError, match=r"other settings \(essays differ\)"):
        use(tmp_path, {"model": "a"}, {"squad": "1", "essays": "3"})
    with pytest.raises(InputError, match=r"other settings \(model, squad differ\)"):
        use(tmp_path, {"model": "b"}, {"squad": "2"})
    assert json.loads((tmp_path / "settings.json").read_text()) == both


def test_two_processes_never_write_into_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("lrsa_lightning.folder_lock._PATIENCE", 0.1)
    folder = tmp_path / "x"
    holder = hold(folder)
    with pytest.raises(InputError, match=f"evaluation {folder} is being written by process {holder.pid} .*--output"):
        use(folder, {"model": "a"}, {})
    assert not folder.exists()
    holder.kill()
    holder.wait()
    use(folder, {"model": "a"}, {})
    hold(folder).communicate("")  # let go of


def test_each_task_is_known_by_its_own_file(tokenizer, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("essays", "squad", "hotpotqa")}
    for name, file in files.items():
        file.write_text(name)
    store = SampleStore(tmp_path, tokenizer, SampleSettings(42, "base", Sources(**files), False))
    assert _source_hashes(store, ["niah_single_1", "vt"]) == {}
    hashes = _source_hashes(store, ["niah_single_2", "qa_1", "qa_2"])
    assert hashes.keys() == files.keys()
    files["squad"].write_text("another")
    assert [
        name
        for name, digest in _source_hashes(store, ["niah_single_2", "qa_1", "qa_2"]).items()
        if digest != hashes[name]
    ] == ["squad"]
