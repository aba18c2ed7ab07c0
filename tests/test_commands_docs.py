"""The commands of docs/commands.md run, in their order, on a tiny model."""

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lrsa_lightning import doctor
from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS
from tests.runs import EACH_STEP, losses

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PAGE = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
LINES = re.search(r"```\n(lrsa doctor\n.*?)```", PAGE, re.DOTALL)[1].splitlines()
LOGGERS = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
SMALL = {"eval": "--budgets 0.5 --batch_size 2 --precision float32", "plan": "--json"}


@pytest.fixture
def files(arguments, train_file) -> None:
    """Those that the page names, for a tiny model."""
    given = {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "2", "data.val_files": str(train_file)}
    nested: dict = {}
    for key, value in (arguments | given).items():
        *groups, name = key.split(".")
        if not key.startswith("model.attention"):
            group = nested.setdefault(groups[0], {}) if groups else nested
            group[name] = yaml.safe_load(value)
    nested["model"]["attention"] = {"class_path": "LRSA", "init_args": {"lag_size": 16, "sink_size": 4}}
    nested["model"]["lr"] = 1e-3
    Path("my.yaml").write_text(json.dumps(nested))
    Path("book.txt").write_text("Anna wrote the letter. " * 10)
    sweep = {"program": "lrsa", "method": "grid", "parameters": {"model.lr": {"values": [1e-4, 1e-3]}}}
    Path("my_sweep.yaml").write_text(json.dumps(sweep | {"command": ["lrsa", "fit", "--config", "my.yaml", "${args}"]}))


def test_the_table_has_each_command():
    assert set(re.findall(r"^\| `lrsa ([\w-]+)` \|", PAGE, re.MULTILINE)) == set(COMMANDS)


def test_the_commands_run_in_their_order(files, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_missing", lambda kind: [])  # of the machine that tests
    said = {}
    for line in LINES:
        lrsa, name, *options = shlex.split(line)
        assert lrsa == "lrsa"
        monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n/exit\n"))
        main([name, *options, *SMALL.get(name, "").split()])
        said[name] = capsys.readouterr().out
    assert list(losses("first")) == [1, 2]
    assert "24 samples" in said["prepare"]
    assert json.loads(said["plan"])
    assert list(Path("my_model").glob("*.safetensors"))
    assert "niah_single_1" in said["eval"]
    assert Path("report/report.html").exists()
    assert said["generate"].strip()
    assert said["chat"].strip()
    assert said["sweep"].count("fit --config my.yaml") == 2


def test_the_loggers_parse(files, capsys):
    Path("loggers.yaml").write_text(LOGGERS)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "my.yaml", "--config", "loggers.yaml", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    kinds = [logger["class_path"].rpartition(".")[2] for logger in printed["trainer"]["logger"]]
    assert kinds == ["TensorBoardLogger", "CSVLogger", "MLFlowLogger"]
