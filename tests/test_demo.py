"""The embedded default: its data, and that the demo learns."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, Qwen2Config

from lrsa_lightning.cli import main as lrsa
from lrsa_lightning.data.demo import make_demo_data
from lrsa_lightning.data.sources import read_samples
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.ruler import make_samples

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    make_demo_data(directory)
    return directory


def test_the_data_is_the_same_every_time(demo_dir, tmp_path):
    make_demo_data(tmp_path)
    for name in ("train.jsonl", "tokenizer/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (demo_dir / name).read_bytes()


@pytest.mark.parametrize("text", ["is: 1234567.", "7 70 700 8001234567", "Écoute! 3.14\n\n  x-y", "a1b22"])
def test_the_tokenizer_loses_nothing(demo_dir, text):
    tokenizer = AutoTokenizer.from_pretrained(demo_dir / "tokenizer")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_is_the_same_beside_a_model(demo_dir, tmp_path):
    """In a Hugging Face folder, where transformers' AutoTokenizer would load one of Qwen's."""
    alone = AutoTokenizer.from_pretrained(demo_dir / "tokenizer")
    alone.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    beside = load_tokenizer(str(tmp_path), "data.tokenizer")
    assert len(beside) == len(alone)
    assert beside("is: 1234567.")["input_ids"] == alone("is: 1234567.")["input_ids"]


def test_no_needle_of_the_evaluation_is_in_the_data(demo_dir):
    tokenizer = AutoTokenizer.from_pretrained(demo_dir / "tokenizer")
    needles = {row["outputs"][0] for row in make_samples("niah_single_1", tokenizer, 512, 50)}
    learned = set(re.findall(r"\d{7}", (demo_dir / "train.jsonl").read_text()))
    assert len(needles) == 50
    assert not needles & learned


def test_samples_fit_the_demos_length(demo_dir):
    tokenizer = AutoTokenizer.from_pretrained(demo_dir / "tokenizer")
    samples = list(read_samples(str(demo_dir / "train.jsonl")))
    assert len({sample.prompt for sample in samples}) == len(samples) == 4000
    assert max(len(tokenizer(f"{s.prompt} {s.answer}")["input_ids"]) for s in samples) < 512


def test_each_sample_asks_for_the_one_number_that_it_states(demo_dir):
    for sample in read_samples(str(demo_dir / "train.jsonl")):
        assert re.findall(r"\d+", sample.prompt) == re.findall(r"\d+", sample.answer)


@pytest.fixture
def script(monkeypatch):
    """Imports a script."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


def test_what_the_demo_prints_ends_as_the_readme_shows(script, tmp_path):
    (block,) = re.findall(r"```text\n(RULER score.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scores = [line.split() for line in block.splitlines()[1:]]
    rows = [{f"ruler/{name}": float(row[at]) for name, *row in scores} for at in (0, 1)]
    lines = [json.dumps({"step": step} | row) for step, row in zip((0, 1000), rows, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert script("demo").report(tmp_path).endswith(block.rstrip())
    assert len(scores) == 3


def test_a_run_of_the_ten_has_its_own_seed_and_a_further_configs_settings(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.yaml").write_text("seed_everything: 42\ntrainer:\n  max_steps: 5\n")
    command = script("demo_seeds").fit_command(3, tmp_path, ["--config", str(tmp_path / "other.yaml")])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        lrsa([*command[3:], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["seed_everything"], config["trainer"]["max_steps"]) == (3, 5)


@pytest.mark.slow
def test_the_demo_learns_to_find_needles_in_the_compressed_cache(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--runs_dir", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    scores = [row["ruler/niah_single_1/512/r0.5"] for row in rows if "ruler/niah_single_1/512/r0.5" in row]
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    assert scores[0] < 10
    assert scores[-1] >= 60
    assert (run / "loss_curve.png").exists()
    assert str(run / "loss_curve.png") in done.stdout
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert "--model.attention configs/attention/vanilla.yaml" in done.stdout
