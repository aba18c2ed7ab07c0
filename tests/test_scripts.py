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


def test_prepare_data_prepares_what_a_run_then_finds(train_file, tokenizer_dir, tmp_path):
    arguments = {
        "--data.train_files": train_file,
        "--data.tokenizer": tokenizer_dir,
        "--data.cache_dir": tmp_path / "cache",
        "--data.seq_len": 300,
        "--data.global_batch_size": 2,
    }
    command = [sys.executable, SCRIPTS / "prepare_data.py", *(str(x) for pair in arguments.items() for x in pair)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    assert f"train: 24 samples in {folder}" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.jsonl"]
    missing = subprocess.run(
        [sys.executable, SCRIPTS / "prepare_data.py", "--data.train_files", "nowhere.jsonl", *command[4:]],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("lrsa: error: data file nowhere.jsonl does not exist")
