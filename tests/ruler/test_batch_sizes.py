"""Batches whose caches fit in the memory: the estimate of a cache, and the scores of smaller batches."""

import pytest
import torch

from lrsa_lightning.attention.cache import cache_bytes
from lrsa_lightning.generation import Prompt
from lrsa_lightning.ruler import batch_sizes
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from tests.conftest import make_model
from tests.ruler.conftest import TASK, all_records


def test_the_estimate_is_the_size_of_the_cache_of_a_prompt_of_full_length(evaluator):
    model, stored = make_model(head_dim=16), []
    for cell in evaluator.cells:
        mode = evaluator.mode(640, cell[2])
        with mode.installed(model), torch.no_grad():
            stored.append(cache_bytes(Prompt(model, torch.ones(1, 640).long(), [640], mode).cache))
    assert [evaluator.prompt_bytes(cell[1:], model.config, model.dtype) for cell in evaluator.cells] == stored
    assert stored[0] > stored[1] > stored[2]


@pytest.mark.parametrize(
    ("device", "rows", "tokens"), [("cpu", 1, 4096), ("cuda", 1, 16384), ("cuda", 2, 8192), ("cuda", 32, 4096)]
)
def test_few_rows_take_longer_pieces_on_an_accelerator(device, rows, tokens):
    assert batch_sizes.tokens_of_a_pass(4096, rows, torch.device(device)) == tokens


def needed_bytes(evaluator, model) -> dict[str, int]:
    """Of a prompt: its cache, and what a layer computes for all of it at once; more than a copy of the cache."""
    config = model.config
    piece = 640 * 4 * (4 * config.intermediate_size + 8 * config.hidden_size)
    assert piece > evaluator.prompt_bytes((640, "r1"), config, model.dtype)
    return {budget: piece + evaluator.prompt_bytes((640, budget), config, model.dtype) for budget in evaluator.budgets}


def test_batches_shrink_to_the_memory_down_to_one_prompt(evaluator, model, monkeypatch, caplog):
    """Batches of two: two prompts with dense caches do not fit in four fifths of the memory, two of the others do."""
    sizes = needed_bytes(evaluator, model)
    free = int(2 * sizes["r0.5"] / 0.8) + 1
    assert free * 0.8 < 2 * sizes["r1"]
    caplog.set_level("INFO", "lrsa_lightning")
    for _ in range(3):
        monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: free)
        fitting = evaluator.batch_sizes(model, Ranks())
        assert fitting == {(640, "r1"): 1, (640, "r0.5"): 2, (640, "r0.25"): 2}
    (line,) = [record.message for record in caplog.records]  # once for each choice
    assert line.startswith("RULER: batches of 2 prompts do not fit in 80% of the 0.0 GiB free, so they get smaller.")
    assert "640/r1 1 x 0.0 GiB" in line
    assert "r0.5" not in line
    assert sum(map(len, evaluator.groups(Ranks(), fitting))) == 5 + 3 + 3
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 1)
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {1}
    monkeypatch.undo()
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {2}  # no measurement on a CPU
    # Each of five ranks has one of the five samples.
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 10**9)
    assert {*evaluator.batch_sizes(model, Ranks(0, 5)).values()} == {1}


def test_smaller_batches_find_the_same(evaluator, model):
    groups = evaluator.groups(Ranks(), {(640, "r1"): 1, (640, "r0.5"): 2, (640, "r0.25"): 2})
    full = all_records(evaluator, model)
    smaller = all_records(evaluator, model, groups=groups)
    assert [(r.id, r.budget, r.prediction) for r in smaller] == [(r.id, r.budget, r.prediction) for r in full]
    assert [r.nll for r in smaller] == pytest.approx([r.nll for r in full], rel=1e-4)
    passes = [len(batch) for batch in evaluator.evaluate(model, generation=False, groups=groups)]
    assert passes == [1, 1, 1, 1, 1, 2, 2, 1, 2, 2, 1]


def test_auto_takes_what_fits_but_no_more_than_pays(tokenizer, model, monkeypatch):
    samples = {(TASK, 640): [{}] * 100, ("vt", 640): [{}] * 20}
    evaluator = RulerEvaluator(tokenizer, samples, [1.0, 0.5], batch_size="auto")
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {8}  # on a CPU, whose memory is not measured
    sizes = needed_bytes(evaluator, model)
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: int(12 * sizes["r0.5"] / 0.8) + 1)
    fitting = evaluator.batch_sizes(model, Ranks())
    assert fitting[640, "r0.5"] == 12
    assert fitting[640, "r1"] == 12 * sizes["r0.5"] // sizes["r1"] < 12
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: 10**12)
    assert {*evaluator.batch_sizes(model, Ranks()).values()} == {32}
    assert {*evaluator.batch_sizes(model, Ranks(0, 10)).values()} == {10}
    assert {*evaluator.batch_sizes(model, Ranks(0, 10), tasks_share=True).values()} == {12}


def test_a_prompt_needs_its_cache_and_either_a_copy_of_it_or_what_a_layer_computes(tokenizer, model, monkeypatch):
    def fitting(chunk: int = 640, **measures) -> dict[str, int]:
        evaluator = RulerEvaluator(tokenizer, samples, [1.0, 0.5], batch_size="auto", prefill_chunk_size=chunk)
        return {budget: size for (_, budget), size in evaluator.batch_sizes(model, Ranks(), **measures).items()}

    samples, config = {(TASK, 640): [{}] * 100}, model.config
    dense = RulerEvaluator(tokenizer, samples, [1.0]).prompt_bytes((640, "r1"), config, model.dtype)
    token = 4 * (4 * config.intermediate_size + 8 * config.hidden_size)
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda device: int(30 * dense / 0.8) + 1)
    assert fitting(chunk=10)["r1"] == 15  # a copy
    assert fitting(chunk=10, teacher_forcing=False)["r1"] == 30 * dense // (dense + 10 * token)
    assert fitting()["r1"] == 30 * dense // (dense + 640 * token)
    rating = fitting(chunk=10, generation=False)  # in one forward pass, without a cache
    assert rating["r1"] == rating["r0.5"] == 30 * dense // (640 * token)
