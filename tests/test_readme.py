"""What the README tells a user to type works."""

import re
import subprocess
import sys
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


# tests/test_conversing.py runs generate and chat.
@pytest.mark.parametrize("command", [c for c in COMMANDS if "NAME" not in c and not c.startswith("lrsa generate")])
def test_commands_parse(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    with pytest.raises(SystemExit) as caught:
        main([*command.replace("\\ ", "").split()[1:], "--print_config"])
    assert caught.value.code == 0
    assert "class_path: lrsa_lightning." in capsys.readouterr().out


@pytest.mark.parametrize("script", ["export_hf.py", "make_ruler.py", "eval_ruler.py", "report.py"])
def test_options_of_scripts_exist(script):
    commands = re.findall(rf"^python scripts/{script} (?:.*\\\n)*.*$", README, re.MULTILINE)
    options = set(re.findall(r"--\w+", " ".join(command.split("#")[0] for command in commands)))
    assert options
    shown = subprocess.run([sys.executable, ROOT / "scripts" / script, "--help"], capture_output=True, text=True)
    assert options <= set(re.findall(r"--\w+", shown.stdout))


def test_the_ten_lines_run(tmp_path, tokenizer, capsys):
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(code.replace("Qwen/Qwen2.5-0.5B", str(tmp_path)), {})
    assert capsys.readouterr().out.strip()
