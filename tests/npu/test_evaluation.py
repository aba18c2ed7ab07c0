"""`lrsa eval` and the local sweep's devices, which find NPUs by themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lrsa_lightning.cli import main as lrsa
from lrsa_lightning.errors import InputError
from lrsa_lightning.npu import NPUAccelerator
from lrsa_lightning.ruler.records import Record, read_records
from lrsa_lightning.sweep import make_slots
from tests.conftest import make_model

pytestmark = pytest.mark.npu
TASK = ["--model", "model", "--tasks", "niah_single_1", "--lengths", "640", "--num_samples", "3", "--batch_size", "1"]


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch) -> Path:
    """With a model and its tokenizer, to run in."""
    make_model(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(output: Path, *further: str) -> list[Record]:
    """Runs the command in this process."""
    lrsa(["eval", *TASK, "--output", str(output), *further])
    return read_records(output / "results.jsonl")


def test_two_npus_score_as_the_cpu(folder, monkeypatch):
    exact = ("--precision", "float32", "--budgets", "1", "0.5")
    command = [sys.executable, "-m", "lrsa_lightning", "eval", *TASK, *exact, "--output", "npus", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(NPUAccelerator, "is_available", lambda: False)
    on_cpu, on_npus = evaluate(folder / "cpu", *exact), read_records(folder / "npus" / "results.jsonl")
    assert [(r.id, r.budget, r.prediction) for r in on_npus] == [(r.id, r.budget, r.prediction) for r in on_cpu]
    assert [r.nll for r in on_npus] == pytest.approx([r.nll for r in on_cpu], rel=1e-4)


def test_an_npu_is_taken_in_bfloat16(folder):
    evaluate(folder / "one", "--budgets", "1", "--generation", "false")
    assert json.loads((folder / "one" / "settings.json").read_text())["dtype"] == "torch.bfloat16"


def test_cells_of_a_sweep_share_the_npus(monkeypatch):
    assert [slot.environment for slot in make_slots()] == [{"ASCEND_RT_VISIBLE_DEVICES": n} for n in "01"]
    assert [slot.name for slot in make_slots(1)] == ["npu 0,1"]
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,5")
    assert [slot.environment for slot in make_slots(2)] == [{"ASCEND_RT_VISIBLE_DEVICES": n} for n in "25"]
    with pytest.raises(InputError, match="divisor"):
        make_slots(3)


def test_npus_that_cannot_be_used_leave_a_sweep_to_the_cpu(monkeypatch):
    monkeypatch.delenv("ASCEND_HOME_PATH")
    assert not NPUAccelerator.is_available()
    assert [slot.environment for slot in make_slots()] == [{}]
