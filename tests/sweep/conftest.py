"""A program that stands for `lrsa fit`: it writes what a run leaves, and it fails, waits or saves on demand."""

import sys
from pathlib import Path

import pytest
import yaml

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
given = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
run = Path(given["runs_dir"]) / given["run_name"]
mode, seed = given["mode"], int(given.get("seed_everything", 1))
(run / "ruler").mkdir(parents=True, exist_ok=True)
calls = Path(given["runs_dir"]) / "calls.txt"
with calls.open("a") as file:
    file.write(f"{run.name} begins {os.environ.get('CUDA_VISIBLE_DEVICES', '-')} {time.monotonic()}\\n")
fails, waits = Path(given["runs_dir"]) / f"fail-{mode}", Path(given["runs_dir"]) / f"wait-{mode}"
if fails.exists():
    print("Traceback: the stub's own error"); sys.exit(3)
def saved(*_):
    (run / "saved").touch(); sys.exit(143)
signal.signal(signal.SIGTERM, saved)
while waits.exists():
    (run / "waiting").touch(); time.sleep(0.02)
time.sleep(float(given.get("sleep", 0)))
tokens = 100 if mode != "more" else 150
score = {"a": 0.25, "b": 0.5}.get(mode, 0.75) + seed / 100
rows = [{"step": i, "train/loss": 4.0 - i, "train/tokens": tokens * i / 2} for i in (1, 2)]
rows.append({"step": 2, "ruler/subset_mean": 100 * score})
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
data = {"seq_len": 128 if mode != "long" else 256, "seed": seed}
(run / "config.yaml").write_text(json.dumps({"data": data, "trainer": {"max_steps": 2}, "seed_everything": seed}))
record = {"id": "x", "task": "niah_single_1", "length": 128, "budget": "r1", "fill": 1.0, "outputs": ["1"],
          "depths": [], "prediction": "1", "score": score}
(run / "ruler" / "step-000002.jsonl").write_text(json.dumps(record) + "\\n")
with calls.open("a") as file:
    file.write(f"{run.name} ends - {time.monotonic()}\\n")
"""


@pytest.fixture
def make_sweep(tmp_path):
    """(parameters, keys of the file) -> a sweep file over the stub, called toy."""
    (tmp_path / "stub.py").write_text(PROGRAM)

    def make(parameters: dict, **keys) -> Path:
        content = {
            "program": str(tmp_path / "stub.py"),
            "method": "grid",
            "metric": {"name": "ruler/subset_mean", "goal": "maximize"},
            "parameters": parameters,
            "command": ["${env}", sys.executable, "${program}", "${args}"],
        }
        file = tmp_path / "toy.yaml"
        file.write_text(yaml.safe_dump(content | keys, sort_keys=False))
        return file

    return make


@pytest.fixture
def runs(tmp_path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def calls(runs: Path) -> list[list[str]]:
    """What the stub wrote of its own calls: cell, begins or ends, devices, time."""
    file = runs / "calls.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def begun(runs: Path) -> list[str]:
    return [name for name, what, *_ in calls(runs) if what == "begins"]
