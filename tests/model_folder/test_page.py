"""What docs/export.md tells a user to type works."""

import json
import re
import shlex
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.runs import callback, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


def test_commands_and_code_of_the_page_run_one_after_the_other(arguments, capsys, monkeypatch, tmp_path):
    callbacks = json.dumps([callback("Checkpoints")])
    main(command({**arguments, "trainer.max_steps": "1", "trainer.callbacks": callbacks}))
    commands = re.findall(r"^lrsa .*$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for line in commands:
        main(shlex.split(line.replace("NAME", "x").replace("FOLDER", "exported"), comments=True)[1:])
    listed = {*json.loads(Path("exported/export.json").read_text())["files"], "export.json"}
    for name in re.findall(r"^\| `([\w.*/]+)`", PAGE, re.MULTILINE):
        assert any(Path(file).match(name) or file.startswith(name) for file in listed), name
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace("FOLDER", "exported"), {})
    assert len(capsys.readouterr().out) > len("The quick brown fox")
