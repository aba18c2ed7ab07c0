"""The folder of an evaluation: what its results depend on, and which later calls may add to them."""

import json
import os
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.evaluated_model import fingerprint
from lrsa_lightning.ruler.evaluation import EvaluationFolder
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.ruler.samples import SampleSettings
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore
from tests.conftest import make_model
from tests.files.test_folder_lock import hold

NOTHING = SimpleNamespace(evaluate=lambda *_, **__: iter(()), in_order=list)


def use(folder, settings: dict, sources: dict) -> dict:
    """The settings in the folder after a call with these."""
    list(EvaluationFolder(folder, settings, sources).run(NOTHING, None, Ranks(), []))
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
    monkeypatch.setattr("lrsa_lightning.files.folder_lock._PATIENCE", 0.1)
    folder = tmp_path / "x"
    holder = hold(folder)
    with pytest.raises(InputError, match=f"evaluation {folder} is being written by process {holder.pid} .*--output"):
        use(folder, {"model": "a"}, {})
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".lock_holder.json"]
    holder.kill()
    holder.wait()
    use(folder, {"model": "a"}, {})
    hold(folder).communicate("")  # the lock is free


def test_each_task_depends_on_its_own_file(tokenizer, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("essays", "squad", "hotpotqa")}
    for name, file in files.items():
        file.write_text(name)
    store = SampleStore(tmp_path, tokenizer, SampleSettings(42, "base", Sources(**files)))
    assert store.hashes(["niah_single_1", "vt"]) == {}
    hashes = store.hashes(["niah_single_2", "qa_1", "qa_2"])
    assert hashes.keys() == files.keys()
    files["squad"].write_text("another")
    assert [
        name for name, digest in store.hashes(["niah_single_2", "qa_1", "qa_2"]).items() if digest != hashes[name]
    ] == ["squad"]


@pytest.fixture
def evaluate(tokenizer, tmp_path, monkeypatch, capsys):
    """The command on a tiny model: (options) -> its output, or what it refuses."""
    make_model(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def call(**options) -> str:
        given = {"model": "model", "output": "eval", "tasks": "niah_single_1", "lengths": 640, "num_samples": 2}
        given |= {"budgets": 0.5, "generation": "false", **options}
        words = [word for name, value in given.items() for word in (f"--{name}", *str(value).split())]
        try:
            main(["eval", *words])
        except SystemExit:
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error")]
            return line
        return capsys.readouterr().out

    return call


RESULTS = Path("eval/results.jsonl")


def test_more_samples_tasks_and_budgets_join_what_is_there(evaluate):
    evaluate()
    evaluate(num_samples=3)
    evaluate(tasks="niah_multikey_2", budgets="1 0.5")
    counts = {}
    for record in read_records(RESULTS):
        counts[record.cell] = counts.get(record.cell, 0) + 1
    assert counts == {
        ("niah_single_1", 640, "r0.5"): 3,
        ("niah_multikey_2", 640, "r1"): 2,
        ("niah_multikey_2", 640, "r0.5"): 2,
    }


def test_a_log_shows_the_progress_where_no_bar_can_be(evaluate, caplog, monkeypatch):
    caplog.set_level("INFO", "lrsa_lightning")
    monkeypatch.setattr("lrsa_lightning.ruler.progress._EVERY_S", 0)
    evaluate(num_samples=3, batch_size=2)
    lines = [record.message.split(", ")[0] for record in caplog.records if "batches done" in record.message]
    assert lines == [f"RULER: {done} of 2 batches done (niah_single_1/640/r0.5)" for done in (1, 2)]


def test_fewer_samples_than_have_results_are_refused(evaluate):
    evaluate(num_samples=3)
    assert "niah_single_1-640-42-2 is none of the 2 that were requested" in evaluate()


def change_record(**values) -> None:
    """Edits the last of the records."""
    lines = RESULTS.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | values)
    RESULTS.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "niah_single_1-640-7-1"}, "niah_single_1-640-7-1 is none of the 2"),
        ({"digest": "0" * 16}, "niah_single_1-640-42-1 has another content"),
        ({"digest": None, "outputs": ["0000000"]}, "niah_single_1-640-42-1 has another content"),
        ({"budget": "window"}, "is scored under window, which this evaluation does not know"),
        ({"task": "vt"}, "niah_single_1-640-42-1 is none of the samples of seed 42"),
        ({"task": "vt", "id": "vt-640-7-1"}, "vt-640-7-1 is none of the samples of seed 42"),
        ({"score": "high"}, "line 2: score is 'high'"),
    ],
)
def test_a_result_that_is_of_no_sample_of_the_evaluation_is_refused(evaluate, change, message):
    evaluate()
    change_record(**change)
    before = RESULTS.read_bytes()
    assert message in evaluate()
    assert RESULTS.read_bytes() == before


def test_other_settings_of_the_samples_are_refused(evaluate, tmp_path):
    evaluate()
    assert "other settings (samples differ)" in evaluate(seed=1)
    assert "other settings (samples differ)" in evaluate(template="chatml")
    assert "other settings (lag_divisor differ)" in evaluate(lag_divisor=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "(dtype, weights differ)"),
        ({"sink_size": 4}, "(sink_size differ)"),
        ({"generation": "true"}, "(generation differ)"),
        ({"generation": "true", "teacher_forcing": "false"}, "(generation, teacher_forcing differ)"),
        ({"attention": "Vanilla"}, "(attention differ)"),
    ],
)
def test_other_measures_are_refused(evaluate, options, message):
    evaluate()
    assert f"eval holds results of other settings {message}" in evaluate(**options)


def test_the_evaluator_gets_the_commands_options(evaluate, monkeypatch, tokenizer):
    made = []

    def make(*args, **kwargs):
        made.append(signature(RulerEvaluator).bind(*args, **kwargs).arguments)
        return RulerEvaluator(*args, **kwargs)

    monkeypatch.setattr("lrsa_lightning.ruler.command.RulerEvaluator", make)
    sizes = {"lag_divisor": 20, "sink_size": 3, "batch_size": 5, "prefill_chunk_size": 99}
    evaluate(**sizes, budgets="1 0.3", template="chatml", num_samples=1)
    (given,) = made
    assert {key: given[key] for key in sizes} == sizes
    assert given["budgets"] == [1, 0.3]
    assert [*given["end_tokens"]] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_samples_of_a_file_that_changed_are_refused(evaluate, tmp_path):
    (tmp_path / "essays.json").write_text(json.dumps({"text": "The first essay. " * 40}))
    evaluate(tasks="niah_single_2", essays="essays.json")
    (tmp_path / "essays.json").write_text(json.dumps({"text": "The other essay. " * 40}))
    assert "other settings (essays differ)" in evaluate(tasks="niah_single_2", essays="essays.json")


def test_weights_that_changed_in_place_are_another_model(evaluate, tokenizer):
    evaluate()
    file = Path("model/model.safetensors")
    before = file.stat()
    make_model(vocab_size=len(tokenizer), max_position_embeddings=2048, seed=1).save_pretrained("model")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "other settings (weights differ)" in evaluate()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "settings.json beside it, which says what they are of, is missing"), ("{", "cannot be read"), ("[]", "no")],
)
def test_results_whose_settings_are_lost_are_refused(evaluate, content, message):
    evaluate()
    Path("eval/settings.json").unlink()
    if content is not None:
        Path("eval/settings.json").write_text(content)
    assert message in evaluate()


def test_a_fingerprint_depends_on_weights_configuration_and_end_tokens():
    def of(seed: int = 0, change=lambda model: None, **keys) -> str:
        change(model := make_model(seed=seed, **keys))
        return fingerprint(model)

    def last_bit(model):
        weight = model.model.norm.weight.data
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(2.0))

    def other_end(model):
        model.generation_config.eos_token_id = 5

    def renamed(model):
        model.config._name_or_path = "elsewhere"

    assert of() == of() == of(change=renamed)
    assert len({of(), of(1), of(change=last_bit), of(change=other_end), of(rms_norm_eps=1e-3)}) == 5
