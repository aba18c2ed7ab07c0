"""GGUF files as starting models."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained import gguf_file
from lrsa_lightning.pretrained.starting_model import StartingModel
from tests.pretrained.gguf_files import make_llama, write_gguf

needs_gguf = pytest.mark.skipif(gguf_file.find_spec("gguf") is None, reason="needs the package gguf")
NAME = "tiny.Q8_0.gguf"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@needs_gguf
def test_the_weights_are_those_that_were_quantised(tmp_path):
    """Their values survive Q8_0, and outputs at far positions show that queries and keys rotate as they did."""
    model = make_llama()
    write_gguf(model, tmp_path / "files" / NAME)
    start = StartingModel(str(tmp_path / "files"), gguf_file=NAME)
    loaded = start.load(start.load_config()).eval()
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())
    ids = torch.arange(3, 103).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


@needs_gguf
def test_a_file_is_read_once_and_a_changed_one_anew(tmp_path, monkeypatch):
    """transformers alone loads the folder; a second start does not open the GGUF file."""
    path = tmp_path / "files" / NAME
    write_gguf(model := make_llama(), path)
    folder = gguf_file.dequantised(str(path.parent), NAME)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs.lm_head.weight, model.lm_head.weight)
    assert theirs.generation_config.eos_token_id == 2
    os.utime(path, ns=(1, 1))
    again = gguf_file.dequantised(str(path.parent), NAME)
    assert again != folder
    monkeypatch.setattr(gguf_file, "_make", None)
    assert gguf_file.dequantised(str(path.parent), NAME) == again


@needs_gguf
def test_what_a_killed_process_left_is_no_model(tmp_path, monkeypatch):
    write_gguf(make_llama(), tmp_path / "files" / NAME)
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", _stop)
        killed.setattr(gguf_file.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            gguf_file.dequantised("files", NAME)
    assert len(_folders()) == 1
    folder = gguf_file.dequantised("files", NAME)
    assert _folders() == [folder]


def _stop(*_) -> None:
    raise KeyboardInterrupt


def _folders() -> list[str]:
    return [str(path) for path in gguf_file.CACHE.absolute().iterdir() if path.is_dir()]


@needs_gguf
def test_each_mistake_is_named(tmp_path):
    write_gguf(make_llama(), tmp_path / "files" / NAME)
    write_gguf(make_llama(), tmp_path / "files" / "t5.gguf", architecture="unheard-of")
    write_gguf(make_llama(), tmp_path / "files" / "part.gguf", leave_out="blk.1.ffn_up.weight")
    (tmp_path / "files" / "text.gguf").write_text("no weights at all")
    mistakes = {
        ("files", "other.gguf"): "'other.gguf' is not in model.name_or_path files: it has part.gguf, t5.gguf",
        (f"files/{NAME}", NAME): "is a file: give the folder that contains it",
        ("files", "t5.gguf"): "unheard-of",
        ("files", "text.gguf"): "text.gguf cannot be read",
        ("files", "part.gguf"): "lack model.layers.1.mlp.up_proj.weight",
        (None, NAME): "model.gguf_file is a file of model.name_or_path",
    }
    for (name, file), said in mistakes.items():
        with pytest.raises(InputError, match=said.replace("(", r"\(")):
            StartingModel(name, {} if name is None else None, gguf_file=file).load_config()


def test_without_the_package_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'lrsa-lightning\[gguf\]'"):
        StartingModel(str(tmp_path), gguf_file=NAME)
