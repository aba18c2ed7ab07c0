"""The sweep files: every command that wandb's agent would build parses."""

import sys
from itertools import permutations
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.sweep import build_command, make_cells, read_sweep

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
FIT = ["/usr/bin/env", "lrsa", "fit"]


def cells():
    for file in FILES:
        sweep = read_sweep(file)
        # Of a search two draws: the forms of the values are those of all.
        for cell in make_cells(sweep, None if sweep.method == "grid" else 2):
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
    assert {"attention_modes", "lrsa_search", "demo", "compare", "compare_demo"} <= {file.stem for file in FILES}


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


def test_a_search_varies_the_rule_and_draws_whole_lags():
    cells = make_cells(read_sweep(CONFIG_DIR / "sweeps/lrsa_search.yaml"))
    assert len(cells) == 16
    lags = [cell.parameters["model.attention.lag_size"] for cell in cells]
    ratios = [cell.parameters["model.attention.retention_ratio"] for cell in cells]
    assert all(type(lag) is int for lag in lags)
    assert len(set(lags)) > 1
    assert len(set(ratios)) == 16
    assert all(0.125 <= ratio <= 0.75 for ratio in ratios)


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
