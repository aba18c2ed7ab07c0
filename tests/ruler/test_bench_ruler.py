"""scripts/bench_ruler.py on a CPU: made-up sources of all tasks, and what it extrapolates."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from lrsa_lightning.ruler import scorer
from lrsa_lightning.ruler.tasks import TASKS, find_task


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    module = importlib.import_module("bench_ruler")
    monkeypatch.setattr(scorer, "find_task", lambda name: replace(find_task(name), tokens_to_generate=4))
    return module


def test_a_slice_of_each_cell_is_measured_and_extrapolated(bench, tokenizer, model, monkeypatch, capsys):
    names = ["niah_single_2", "qa_1", "qa_2"]  # a task of each file
    monkeypatch.setattr(bench, "TASKS", {name: TASKS[name] for name in names})
    bench.report_slice(model, tokenizer, [3000], in_slice=2, num_samples=20)
    lines = capsys.readouterr().out.splitlines()
    cells = [[part.strip() for part in line.split("|")[1:4]] for line in lines if line.startswith("| ")][1:]
    assert cells == [[name, "3000", f"r={budget}"] for name in names for budget in (1, 0.5, 0.25)]
    assert lines[-2].startswith("measured: ")
    assert lines[-1].startswith("extrapolated: ")
    assert lines[-1].endswith(" s")


def test_prefill_is_extrapolated_by_samples_and_decoding_by_batches(bench, tokenizer, model, monkeypatch, capsys):
    """A clock on which a sample's prefill takes two seconds, and a batch's decoding five."""
    ticks = {"now": 0.0}
    monkeypatch.setattr(bench.time, "perf_counter", lambda: ticks["now"])

    class Evaluator(bench.RulerEvaluator):
        def evaluate(self, model):
            for start in range(0, len(next(iter(self.samples.values()))), 8):
                rows = len(next(iter(self.samples.values()))[start : start + 8])
                ticks["now"] += 2 * rows + 5
                self.stopwatch.seconds["decoding"] += 5
                yield []

    monkeypatch.setattr(bench, "RulerEvaluator", Evaluator)
    measured, extrapolated = bench._report_cell(model, tokenizer, ("vt", 640), [{}] * 4, 0.5, 20)
    assert (measured, extrapolated) == (2 * 4 + 5, 2 * 20 + 5 * 3)  # in batches of 8 on a CPU
