"""The commands of docs/optimizers.md run on a tiny model, and its table names every optimizer."""

import re
import shlex
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.optimizer.names import OptimizerName
from tests.lora.test_lora_docs import configs  # noqa: F401  a fixture
from tests.runs import metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_commands_run(configs, capsys):  # noqa: F811
    for command in COMMANDS:
        lrsa, *options = shlex.split(command)
        assert lrsa == "lrsa"
        main(options)
    assert [row["train/lr"] for row in metrics("sgd")][-1] < metrics("sgd")[0]["train/lr"]
    assert capsys.readouterr().out.count("1 x H100 80GB, one device: peak") == 2


def test_each_name_of_the_table_exists():
    rows = re.findall(r"^\| (torch|bitsandbytes|torchao) \| (.*?) \|", PAGE, re.MULTILINE)
    assert [library for library, _ in rows] == ["torch", "bitsandbytes", "torchao"]
    for library, names in rows:
        for name in re.findall(r"[\w.]*(?:adam|sgd|lion|rmsprop|asgd|ada|nadam|radam)\w*", names):
            assert OptimizerName.of(name).library == library
