"""What the README tells a user to type works."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.conftest import make_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    re.sub(r"\s+", " ", command.split("#")[0]).strip()
    for command in re.findall(r"^lrsa (?:.*\\\n)*.*$", README, re.MULTILINE)
]


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, monkeypatch, capsys):
    """tests/test_conversing.py runs generate and chat."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    name, *options = shlex.split(line.replace("\\ ", ""))[1:]
    if name not in ("fit", "validate", "plan"):
        module = import_module(f"lrsa_lightning.commands.{name}")
        if hasattr(module, "make_parser"):
            module.make_parser().parse_args(options)
        return
    if "NAME" in line:
        return
    with pytest.raises(SystemExit) as caught:
        main([name, *options, "--print_config"])
    assert caught.value.code == 0
    assert "class_path: lrsa_lightning." in capsys.readouterr().out


def test_the_ten_lines_run(tmp_path, tokenizer, capsys):
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(code.replace("Qwen/Qwen2.5-0.5B", str(tmp_path)), {})
    assert capsys.readouterr().out.strip()
