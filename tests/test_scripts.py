"""The commands of scripts/: each explains itself without the hardware or the data it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_help(script):
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()


@pytest.fixture
def arguments(train_file, tokenizer_dir, tmp_path):
    options = {
        "--data.train_files": train_file,
        "--data.tokenizer": tokenizer_dir,
        "--data.cache_dir": tmp_path / "cache",
        "--data.seq_len": 300,
        "--data.global_batch_size": 2,
    }
    return [str(x) for pair in options.items() for x in pair]


def run(script, *arguments, cwd):
    command = [sys.executable, SCRIPTS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_inspect_data_shows_lengths_learned_tokens_and_a_sample(arguments, tmp_path):
    result = run("inspect_data.py", *arguments, "--output", "lengths.png", "--sample", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "24 read, 24 kept, 0 left out, 0 shortened" in result.stdout
    assert "languages       other 100.0%" in result.stdout
    assert "Document 1:" in result.stdout
    assert "Which colour has house 3? Colour 3.<|endoftext|>" in result.stdout.replace("\n", " ").replace("  ", " ")
    wrong = run("inspect_data.py", *arguments, "--sample", "99", cwd=tmp_path)
    assert "--sample must lie in 0..23" in wrong.stderr


def test_prepare_data_prepares_what_a_run_then_finds(arguments, tmp_path):
    result = run("prepare_data.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    assert f"train: 24 samples in {folder}" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.jsonl"]
    missing = run("prepare_data.py", *arguments, "--data.train_files", "nowhere.jsonl", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("lrsa: error: data file nowhere.jsonl does not exist")
