"""Preparing once: atomic, keyed by content, the same with any number of workers; mixtures."""

import errno
import json

import pytest

from lrsa_lightning.data import prepared
from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.corpus import mix, weight_of
from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.prepared import prepare
from lrsa_lightning.data.template import make_template
from lrsa_lightning.errors import InputError
from tests.conftest import longalign_row
from tests.data.test_augment import sample

POOL = [sample(i, 2 + 7 * i % 30) for i in range(40)]


def encoder(tokenizer, seq_len=400):
    return SampleEncoder(tokenizer, make_template("base", tokenizer), seq_len, Extender(POOL, "Document", 0))


def rows(samples):
    return [(list(row.ids), row.num_labels) for row in samples]


def test_any_number_of_workers_prepares_the_same(tokenizer, tmp_path):
    one, three = (prepare(tmp_path / str(n), POOL, encoder(tokenizer), n) for n in (1, 3))
    direct = [encoder(tokenizer)(s) for s in POOL]
    assert rows(one) == rows(three) == [(row.ids, row.num_labels) for row in direct if row is not None]
    assert one.report == {"read": 40, "kept": len(one), "left out": 40 - len(one), "shortened": 0}
    assert one.num_labels == [row.num_labels for row in one]


def test_prepared_samples_are_on_disk_and_are_not_made_twice(tokenizer, tmp_path, monkeypatch):
    first = prepare(tmp_path / "a", POOL, encoder(tokenizer))
    assert first._rows.cache_files
    monkeypatch.setattr(prepared, "_write", lambda *_: pytest.fail("prepared again"))
    assert rows(prepare(tmp_path / "a", POOL, encoder(tokenizer))) == rows(first)


def test_a_failure_leaves_no_partial_folder(tokenizer, tmp_path):
    def fails_late(s):
        if s.id == "f:30":
            raise OSError(errno.ENOSPC, "No space left on device")
        return encoder(tokenizer)(s)

    with pytest.raises(InputError, match=r"no space left .* data\.cache_dir"):
        prepare(tmp_path / "a", POOL, fails_late)
    assert list(tmp_path.iterdir()) == []
    assert len(prepare(tmp_path / "a", POOL, encoder(tokenizer))) > 0


def module_of(train_file, tokenizer_dir, tmp_path, **options):
    module = LongContextDataModule(
        [str(train_file)],
        tokenizer=str(tokenizer_dir),
        cache_dir=str(tmp_path / "cache"),
        prepare_workers=1,
        **{"seq_len": 300, "global_batch_size": 2, **options},
    )
    module.prepare_data()
    return module


def test_too_long_samples_are_counted_and_it_is_an_error_if_none_is_left(train_file, tokenizer_dir, tmp_path, caplog):
    with train_file.open("a") as lines:
        lines.write(json.dumps(longalign_row("word " * 500, "Which?", "None.")) + "\n")
    module = module_of(train_file, tokenizer_dir, tmp_path)
    assert len(module.prepare("train")) == 24
    assert "1 of 25 samples are longer than data.seq_len 300" in caplog.text
    with pytest.raises(InputError, match=r"no sample fits data\.seq_len 8.*data\.too_long"):
        module_of(train_file, tokenizer_dir, tmp_path, seq_len=8).prepare("train")


def test_mixture_weights():
    many = [sample(i, 1) for i in range(1000)]
    counts = {weight: len(mix(many, weight, 0)) for weight in (0, 0.5, 1, 2.25)}
    assert counts[0] == 0
    assert counts[1] == 1000
    assert 400 < counts[0.5] < 600
    assert 2150 < counts[2.25] < 2350
    assert len({s.id for s in mix(POOL, 2, 0)}) == 80
    assert mix(POOL, 0.5, 0) == mix(POOL, 0.5, 0) != mix(POOL, 0.5, 1)


def test_mixture_names():
    files = ["data/a.jsonl.gz", "owner/set"]
    for name in ("a", "a.jsonl.gz", "data/a.jsonl.gz"):
        assert [weight_of(file, files, {name: 0.5}) for file in files] == [0.5, 1.0]
    with pytest.raises(InputError, match=r"data\.mixture names 'b'.*a\.jsonl\.gz, set"):
        weight_of(files[0], files, {"b": 1})
