"""RULER's checks and validation while weights and sequences are shared: the scores of one process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lightning import Callback
from torch import distributed as dist

from lrsa_lightning.ruler import batch_sizes, scorer
from lrsa_lightning.ruler.records import Record, read_records
from lrsa_lightning.ruler.tasks import find_task
from tests.conftest import sample_rows, write_jsonl
from tests.distributed.fits import fit, strategy
from tests.runs import callback

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]


class CountCollectives(Callback):
    """Writes how many collectives this process took part in, in each of its groups."""

    def on_fit_end(self, trainer, pl_module) -> None:
        # torch counts them itself, to tell which one hangs.
        groups = dist.distributed_c10d._world.pg_map
        counts = [group._get_sequence_number_for_group() for group in groups]
        Path(f"collectives-{trainer.global_rank}").write_text(json.dumps(counts))


@pytest.fixture(scope="module")
def of_one_process() -> dict:
    return {}


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    """12 new tokens instead of 128: gloo gathers the weights for each anew. The forked ranks inherit the patch."""
    monkeypatch.setattr(scorer, "find_task", lambda name: replace(find_task(name), tokens_to_generate=12))


@pytest.fixture
def evaluate(arguments, tmp_path):
    """A step of training with a RULER check before and after, and a validation; the records and the validation loss."""
    samples = {"tasks": ["niah_single_1"], "lengths": [512], "budgets": [1.0, 0.5], "num_samples": 3}
    options = {
        **arguments,
        "trainer.max_steps": "1",
        "trainer.val_check_interval": "1",
        "trainer.check_val_every_n_epoch": "null",
        "data.val_files": str(write_jsonl(tmp_path / "val.jsonl", sample_rows()[1:])),  # 23: one rank has one less
        "data.micro_batch_size": "1",
    }

    def run(size: int, chosen: dict[str, str], **of_ruler) -> tuple[list[Record], list[float]]:
        ruler = callback("RulerEval", **samples, generation="always", **of_ruler)
        callbacks = [ruler] + [{"class_path": "tests.distributed.test_evaluation.CountCollectives"}] * (size > 1)
        found = fit(size, options | chosen | {"trainer.callbacks": json.dumps(callbacks)}, tmp_path)
        records = [read_records(path) for path in sorted(Path("runs/x/ruler").glob("step-*.jsonl"))]
        return [record for of_step in records for record in of_step], found.curve("val/loss")

    return run


@pytest.fixture
def compare(evaluate, of_one_process):
    """Scores and validation of several ranks with those of one process; the collectives of each rank."""

    def run(size: int, chosen: dict[str, str], **of_ruler) -> list[list[int]]:
        if not of_one_process:
            of_one_process["records"], of_one_process["loss"] = evaluate(1, {})
        records, loss = evaluate(size, chosen, **of_ruler)
        assert len(records) == 2 * 2 * 3
        expected = of_one_process["records"]
        assert [(r.id, r.budget, r.prediction) for r in records] == [(r.id, r.budget, r.prediction) for r in expected]
        assert [r.nll for r in records] == pytest.approx([r.nll for r in expected], rel=1e-4)
        assert all(r.kv_bytes > 0 for r in records)
        # It runs after each micro-batch, the last time after the step.
        assert loss[-1] == pytest.approx(of_one_process["loss"][-1], rel=1e-5)
        assert loss[-1] < loss[0]
        return [json.loads(Path(f"collectives-{rank}").read_text()) for rank in range(size)]

    return run


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        (2, strategy("zero2", 2, "ulysses")),
        (2, strategy("fsdp2", 2, "context")),
        (4, strategy("zero3", 2, "context")),
    ],
    ids=["zero2-ulysses", "fsdp2-context", "zero3-2x2"],
)
def test_scores_and_validation_are_those_of_one_process(compare, size, chosen):
    first, *others = compare(size, chosen)
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", ["zero3", "fsdp2"])
def test_batches_that_shrink_find_the_same_and_make_the_same_collectives(compare, monkeypatch, name):
    """The second rank has no room for a second prompt, the first has: both score one at a time."""
    monkeypatch.setattr(batch_sizes, "free_bytes", lambda _: 1 if dist.is_initialized() and dist.get_rank() else 10**9)
    first, second = compare(2, strategy(name, 2, "context"), batch_size=2)
    assert first == second
