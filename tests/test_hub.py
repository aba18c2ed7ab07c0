"""A hub that cannot be reached is found out in seconds, and code of a folder is never run."""

import builtins
import json
import logging
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

from lrsa_lightning import hub
from lrsa_lightning.data.files import rows_of
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained.decoder import load_config, load_model
from tests.conftest import make_model


@pytest.fixture
def dead_end(monkeypatch):
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "_TIMEOUT_S", 0.3)
        hub._settle.cache_clear()
        yield
        hub._settle.cache_clear()


def test_an_unreachable_hub_is_tried_once_and_refused_within_seconds(dead_end, caplog):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"model\.name_or_path 'no/such' cannot be loaded: We couldn't connect"):
        load_config("no/such", None)
    with pytest.raises(InputError, match=r"data\.tokenizer 'no/such' cannot be loaded: We couldn't connect"):
        load_tokenizer("no/such", "data.tokenizer")
    with pytest.raises(InputError, match="hub data set no/such cannot be loaded"):
        next(iter(rows_of("no/such")))
    assert time.monotonic() - started < 20  # of which importing datasets is most; each alone took 23 s
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in said] == ["lrsa_lightning.hub"]


def test_folders_do_not_contact_the_hub(dead_end, tmp_path):
    hub.before_loading(str(tmp_path))
    hub.before_loading("./somewhere")
    assert hub._settle.cache_info().currsize == 0


def test_a_hub_that_answers_is_used(dead_end, monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    hub.before_loading("no/such")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.fixture
def yes(monkeypatch, tmp_path):
    """Answers yes to every question; the code in the folder would leave a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    folder = Path("folder")
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    yield folder
    assert not Path("was_run").exists()


def test_a_model_that_needs_its_own_code_is_refused(yes):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (yes / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"'folder' cannot be loaded: .*code in it \(auto_map\) is not run"):
        load_config("folder", None)


def test_a_known_model_is_loaded_without_the_code_in_its_folder(yes, caplog):
    make_model().save_pretrained(yes)
    config = json.loads((yes / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (yes / "config.json").write_text(json.dumps(config))
    found = load_config("folder", None)
    assert "folder': its own code (auto_map) is not run" in caplog.text
    assert type(load_model(found, "folder")).__name__ == "Qwen2ForCausalLM"
    assert type(load_model(found, None)).__name__ == "Qwen2ForCausalLM"


def test_a_tokenizer_that_needs_its_own_code_is_refused(yes, tokenizer_dir):
    shutil.copy(tokenizer_dir / "tokenizer.json", yes)
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}
    (yes / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"'folder' cannot be loaded: .*code in it is not run"):
        load_tokenizer("folder", "data.tokenizer")


def test_every_call_that_could_run_code_of_a_folder_forbids_it():
    """Without trust_remote_code=False transformers asks on a terminal, and a yes runs the code."""
    root = Path(__file__).parents[1]
    files = [*root.glob("lrsa_lightning/**/*.py"), *root.glob("callbacks/*.py"), *root.glob("scripts/*.py")]
    for file in files:
        text = re.sub(r"(Generation|Peft)Config\.from_pretrained\(", "", file.read_text())  # neither can run any
        for part in text.split(".from_pretrained(")[1:]:
            assert "trust_remote_code=False" in part[:200], file
        for part in text.split("AutoModelForCausalLM.from_config(")[1:]:
            if file.parent.name != "scripts":  # whose configurations are made there
                assert "trust_remote_code=False" in part[:200], file


@pytest.mark.parametrize("terminal", [False, True])
def test_weights_are_loaded_without_a_bar_in_a_log_file(tmp_path, monkeypatch, capsys, terminal):
    from transformers.utils.logging import is_progress_bar_enabled

    make_model().save_pretrained(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    load_model(load_config(str(tmp_path), None), str(tmp_path))
    assert ("Loading weights" in capsys.readouterr().err) == terminal
    assert is_progress_bar_enabled()
