"""A resume goes on with the samples of the run: others are found by their content, before anything is prepared."""

from pathlib import Path

import pytest
import torch

from lrsa_lightning import module
from lrsa_lightning.cli import main
from lrsa_lightning.data import datamodule
from lrsa_lightning.data.trained_content import check_files, check_samples
from lrsa_lightning.errors import InputError
from tests.conftest import longalign_row, sample_rows, write_jsonl
from tests.runs import checkpoints, command, losses

CHECKPOINT = Path("runs/x/checkpoints/step=2.ckpt")


@pytest.fixture
def resume(arguments, train_file, in_tmp_path):
    """Resumes a run of two steps, after something has been done to it; it ends at step 3."""
    arguments |= {"trainer.max_steps": "2", "trainer.callbacks": checkpoints(2)}
    main(command(arguments))

    def go_on(**options: str) -> None:
        main(command({**arguments, "trainer.max_steps": "3", "ckpt_path": str(CHECKPOINT), **options}))

    return go_on


def test_changed_train_files_are_refused_before_anything_is_prepared(resume, train_file, monkeypatch, capsys):
    write_jsonl(train_file, [*sample_rows()[:-1], longalign_row("Another text.", "Which?", "That.")])
    with monkeypatch.context() as patch:
        patch.setattr(datamodule, "prepare", lambda *_: pytest.fail("prepared"))
        patch.setattr(module.LongContextModule, "configure_model", lambda _: pytest.fail("loaded"))
        with pytest.raises(SystemExit) as ended:
            resume()
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lrsa: error: data.train_files: train.jsonl changed since the checkpoint was written")
    assert "--allow_mismatch true" in error
    resume(allow_mismatch="true")
    assert list(losses()) == [1, 2, 3]


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_resumes(resume, train_file):
    held = torch.load(CHECKPOINT, weights_only=True)
    content = held.pop("LongContextDataModule")
    assert content["train_files"][0][0] == "train.jsonl"
    torch.save(held, CHECKPOINT)
    write_jsonl(train_file, [*sample_rows()[:-1], longalign_row("Another text.", "Which?", "That.")])
    resume()
    assert list(losses()) == [1, 2, 3]


def test_a_changed_tokenizer_is_refused(resume, arguments, tokenizer_dir, tmp_path, capsys):
    """Its name is the same: what it makes of the samples is not."""
    held = torch.load(CHECKPOINT, weights_only=True)
    held["LongContextDataModule"]["samples"] = "0" * 64
    torch.save(held, CHECKPOINT)
    with pytest.raises(SystemExit):
        resume()
    assert "are not those that the checkpoint was trained on: the tokenizer" in capsys.readouterr().err


def test_what_is_compared():
    saved = {"train_files": [["a.jsonl", "1"], ["b.jsonl", "2"]], "samples": "3"}
    check_files(saved, [["a.jsonl", "1"], ["b.jsonl", "2"]])
    check_samples(saved, "3", Path("folder"))
    for files, named in (
        ([["a.jsonl", "1"], ["b.jsonl", "5"]], "b.jsonl"),
        ([["a.jsonl", "5"], ["b.jsonl", "5"]], "a.jsonl, b.jsonl"),
        ([["a.jsonl", "1"]], "their number or order"),
        ([["b.jsonl", "2"], ["a.jsonl", "1"]], "their number or order"),
    ):
        with pytest.raises(InputError, match=f"data.train_files: {named} changed"):
            check_files(saved, files)
    with pytest.raises(InputError, match="prepared samples in folder"):
        check_samples(saved, "4", Path("folder"))


def test_validation_of_a_checkpoint_does_not_need_the_train_files_of_its_run(resume, arguments, train_file):
    write_jsonl(train_file, [*sample_rows()[:-1], longalign_row("Another text.", "Which?", "That.")])
    own = {"data.val_files": str(write_jsonl(train_file.parent / "val.jsonl", sample_rows()[:3]))}
    main(command({**arguments, **own, "ckpt_path": str(CHECKPOINT)}, "validate"))


def test_too_few_rows_are_refused_before_the_model_is_loaded(arguments, in_tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.LongContextModule, "configure_model", lambda _: pytest.fail("loaded"))
    with pytest.raises(SystemExit):
        main(command({**arguments, "data.global_batch_size": "26"}))
    assert "24 samples are fewer than data.global_batch_size 26" in capsys.readouterr().err
