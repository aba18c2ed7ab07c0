"""The commands of docs/lora.md run, in their order, on a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.lora.adapters import LoraSettings
from tests.lora_runs import lora_run, save_base
from tests.runs import EACH_STEP, losses

pytestmark = pytest.mark.usefixtures("in_tmp_path")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
SMALL = {
    "eval": "--tasks niah_single_1 --lengths 512 --num_samples 1 --budgets 1.0 0.5 --precision float32",
    "generate": "--max_new_tokens 2",
}


@pytest.fixture
def configs(arguments, tokenizer, tmp_path) -> None:
    """The files that the page names, for a tiny model."""
    given = lora_run(arguments, save_base(tmp_path / "base", tokenizer)) | {"trainer.callbacks": EACH_STEP}
    tiny = {key: value for key, value in given.items() if not key.startswith(("model.lora", "run_name"))}
    nested: dict = {}
    for key, value in tiny.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = yaml.safe_load(value)
    mode = {
        name.split(".")[1]: nested["model"].pop(name) for name in [*nested["model"]] if name.startswith("attention.")
    }
    nested["model"]["attention"] = {"class_path": "lrsa_lightning.LRSA", "init_args": mode}
    for name in ("model/qwen2.5-7b", "experiment/compare_lrsa"):
        file = Path(f"configs/{name}.yaml")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(nested))
    Path("configs/lora").symlink_to(ROOT / "configs" / "lora")


def test_the_commands_run(configs):
    for command in COMMANDS:
        lrsa, subcommand, *options = shlex.split(command, comments=True)
        assert lrsa == "lrsa"
        main([subcommand, *options, *SMALL.get(subcommand, "").split()])
    assert sum(word == "fit" for command in COMMANDS for word in command.split()) == 3
    assert losses("on")[1] < losses("adapters")[1]
    found: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], found)
    assert found["model"].get_decoder().config._attn_implementation.startswith("LRSA")
    for folder in ("eval", "eval-adapter"):
        assert "niah_single_1" in Path(folder, "results.jsonl").read_text()


def test_the_table_names_the_settings():
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
    assert {*named} == {*LoraSettings.__dataclass_fields__}
