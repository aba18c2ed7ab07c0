"""The sweep files: every command that wandb's agent would build parses."""

import sys
from itertools import permutations
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.errors import InputError
from lrsa_lightning.sweep import Sweep, build_command, make_cells, read_sweep

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
FIT = ["/usr/bin/env", "lrsa", "fit"]


SEARCH = CONFIG_DIR / "sweeps/lrsa_search.yaml"


def search() -> Sweep:
    """The search of W&B's server as a grid over the ends of its ranges."""
    content = yaml.safe_load(SEARCH.read_text())
    described = content["parameters"]
    values = {name: own.get("values") or [own["min"], own["max"]] for name, own in described.items()}
    return Sweep("lrsa_search", content["program"], values, content["command"])


def cells():
    for file in FILES:
        sweep = search() if file.name == SEARCH.name else read_sweep(file)
        for cell in {cell.setting: cell for cell in make_cells(sweep)}.values():  # one seed of each
            for number, order in enumerate(permutations(cell.parameters.items())):
                yield pytest.param(sweep, dict(order), id=f"{sweep.name}-{cell.name}-order{number}")


@pytest.fixture
def printed(monkeypatch, capsys):
    """Command -> the configuration it has; run in the repository's root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lrsa"])
    monkeypatch.setenv("LRSA_TRAIN_FILES", "my.jsonl")

    def parse(command: list[str]) -> dict:
        assert command[:3] == FIT
        with pytest.raises(SystemExit) as caught:
            main([*command[2:], "--print_config"])
        assert caught.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return parse


def test_the_files_are_there():
    assert {"attention_modes", "lrsa_search", "demo", "compare", "compare_demo", "smollm2", "qwen2_scratch"} <= {
        file.stem for file in FILES
    }


@pytest.mark.parametrize(("sweep", "parameters"), cells())
def test_every_cell_parses_in_every_order_and_means_what_it_says(sweep, parameters, printed, monkeypatch):
    monkeypatch.setenv("LRSA_TRAIN_FILES", "my.jsonl")
    config = printed(build_command(sweep, parameters))
    attention = config["model"]["attention"]
    sizes = attention.get("init_args", {})
    for option, value in parameters.items():
        if option == "seed_everything":
            assert config["seed_everything"] == value
        elif option == "model.attention":
            named = yaml.safe_load((ROOT / value).read_text())
            assert attention["class_path"] == named["class_path"]
            assert sizes.items() >= named.get("init_args", {}).items()
        elif option.startswith("model.attention."):
            assert sizes[option.rsplit(".", 1)[1]] == value
            assert attention["class_path"].endswith("LRSA")
    if "my.jsonl" in " ".join(sweep.command) or "LRSA_TRAIN_FILES" in " ".join(sweep.command):
        assert config["data"]["train_files"] == "my.jsonl"
    assert config["ckpt_path"] == "last"


def test_the_search_is_left_to_wandb_and_has_whole_lags():
    with pytest.raises(InputError, match=r"lrsa_search\.yaml: method is 'random'"):
        read_sweep(SEARCH)
    found = search().parameters
    assert all(type(lag) is int for lag in found["model.attention.lag_size"])
    assert found["model.attention.retention_ratio"] == [0.125, 0.75]


def test_the_comparison_keeps_the_experiments_lrsa(printed):
    settings = {}
    for cell in make_cells(read_sweep(CONFIG_DIR / "sweeps/compare_demo.yaml")):
        config = printed(build_command(read_sweep(CONFIG_DIR / "sweeps/compare_demo.yaml"), cell.parameters))
        settings[cell.name] = config
    assert settings["compare_lrsa"]["model"]["attention"]["init_args"]["lag_size"] == 16
    assert settings["compare_vanilla"]["model"]["attention"]["class_path"].endswith("Vanilla")
    assert settings["compare_base"]["trainer"]["max_steps"] == 0
    assert settings["compare_lrsa"]["trainer"]["max_steps"] == settings["compare_vanilla"]["trainer"]["max_steps"] > 0
    assert settings["compare_lrsa"]["data"] == settings["compare_vanilla"]["data"]
