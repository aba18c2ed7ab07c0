"""Entries of data.train_files that are parts of a hub data set, also streamed."""

import json

import datasets
import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.data.data_file import DataFile, data_files
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.errors import InputError
from tests.conftest import sample_rows, write_jsonl
from tests.data.test_files import corpus
from tests.runs import command, kept_curve, losses, refusal

SIZES = {"train": 12, "test": 5}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub data set with two splits. The library itself cuts and streams; only its place is another."""
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", sample_rows()[:size])) for name, size in SIZES.items()}
    load, calls = datasets.load_dataset, []

    def load_dataset(path, **options):
        calls.append({"path": path} | options)
        return load("json", data_files=files, split=options["split"], streaming=options["streaming"])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("lrsa_lightning.data.hub_rows.before_loading", lambda name: None)
    return calls


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 12),
        ({"split": "test"}, 5),
        ({"split": "train[:25%]"}, 3),
        ({"streaming": True, "rows": 4}, 4),
        ({"streaming": True, "rows": 100, "split": "test"}, 5),
        ({"rows": 7}, 7),
    ],
)
def test_a_part_of_a_hub_data_set_is_read(hub, options, count):
    answers = [sample.answer for sample in read_samples(DataFile("owner/name", **options))]
    assert answers == [row["messages"][1]["content"] for row in sample_rows()[:count]]
    assert [sample.id for sample in read_samples(DataFile("owner/name", rows=1))] == ["name:1"]


def test_subset_and_revision_reach_the_library(hub):
    next(read_samples(DataFile("owner/name", subset="long", revision="abc123")))
    assert hub[0].items() >= {"path": "owner/name", "name": "long", "revision": "abc123", "split": "train"}.items()


def test_an_unknown_split_of_the_hub_is_named_with_the_way_out(hub):
    for options in ({}, {"streaming": True, "rows": 1}):
        with pytest.raises(
            InputError, match=r"owner/name cannot be loaded \(ValueError: .*split.*set split and subset"
        ):
            list(read_samples(DataFile("owner/name", split="dev", **options)))


def test_two_parts_of_a_hub_data_set_are_two_files(hub, caplog):
    train, val = (data_files("x", {"path": "owner/name", "split": split}) for split in ("train", "test"))
    both = corpus(train, val)
    both.check()
    assert not caplog.records
    assert len({*both.contents("val")}) == 2
    corpus(train, train).check()
    assert "owner/name, which is a train file too" in caplog.text


def test_a_streamed_run_resumes_as_if_it_had_not_stopped(hub, arguments, in_tmp_path, capsys):
    entry = {"path": "owner/name", "streaming": True, "rows": 8}
    arguments |= {"data.train_files": json.dumps([entry]), "trainer.max_steps": "4", "trainer.callbacks": kept_curve()}
    main(command(arguments))
    complete = losses()
    arguments["ckpt_path"] = "runs/x/checkpoints/step=2.ckpt"
    assert "data.train_files" in refusal(
        capsys, command(arguments | {"data.train_files": json.dumps([entry | {"rows": 9}])})
    )
    main(command(arguments))
    assert losses() == complete
    assert len(complete) == 4
    assert all(call["streaming"] for call in hub)
