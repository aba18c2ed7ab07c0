"""Batches whose caches fit in the memory: the estimate of a cache, and the scores of smaller batches."""

import pytest
import torch

from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler import batch_sizes
from lrsa_lightning.ruler.ranks import Ranks
from tests.conftest import make_model
from tests.ruler.conftest import TASK, all_records


def test_the_estimate_is_the_size_of_the_cache_of_a_prompt_of_full_length(evaluator):
    model, stored = make_model(head_dim=16), []
    for cell in evaluator.cells:
        mode = evaluator.mode(640, cell[2])
        with mode.installed(model), torch.no_grad():
            stored.append(cache_bytes(Prompt(model, torch.ones(1, 640).long(), [640], mode).cache))
    assert [evaluator.prompt_bytes(cell, model.config, model.dtype) for cell in evaluator.cells] == stored
    assert stored[0] > stored[1] > stored[2]


def prompt_bytes(evaluator, model) -> dict[str, int]:
    return {cell[2]: evaluator.prompt_bytes(cell, model.config, model.dtype) for cell in evaluator.cells}


def test_batches_shrink_to_the_memory_down_to_one_prompt(evaluator, model, monkeypatch, caplog):
    """Batches of two: two dense caches do not fit in four fifths of the memory, two of the others do."""
    sizes = prompt_bytes(evaluator, model)
    free = int(2 * sizes["r0.5"] / 0.8) + 1
    assert free * 0.8 < 2 * sizes["r1"]
    caplog.set_level("INFO", "lrsa_lightning")
    for _ in range(3):
        monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: free)
        fitting = evaluator.batch_sizes(model, Ranks())
        assert {cell[2]: size for cell, size in fitting.items()} == {"r1": 1, "r0.5": 2, "r0.25": 2}
    (line,) = [record.message for record in caplog.records]  # once for each choice
    assert line.startswith("RULER: caches do not fit in 80% of the 0.0 GiB free, so the batches get smaller.")
    assert "niah_single_1/640/r1 1 x 0.0 GiB" in line
    assert "r0.5" not in line
    assert evaluator.num_batches(Ranks(), fitting) == 5 + 3 + 3
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 1)
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {1}
    monkeypatch.undo()
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {2}  # no measurement on a CPU
    # Each of five ranks has one of the five samples.
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 10**9)
    assert {*evaluator.batch_sizes(model, Ranks(0, 5)).values()} == {1}


def test_smaller_batches_find_the_same(evaluator, model):
    full = all_records(evaluator, model)
    smaller = all_records(evaluator, model, batch_sizes={(TASK, 640, "r1"): 1})
    assert [(r.id, r.budget, r.prediction) for r in smaller] == [(r.id, r.budget, r.prediction) for r in full]
    assert [r.nll for r in smaller] == pytest.approx([r.nll for r in full], rel=1e-4)
    passes = [len(batch) for batch in evaluator.evaluate(model, generation=False, batch_sizes={(TASK, 640, "r1"): 1})]
    assert passes == [1, 1, 1, 1, 1, 2, 2, 1, 2, 2, 1]
