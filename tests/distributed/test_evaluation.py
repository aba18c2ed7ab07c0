"""RULER's checks and validation while weights and sequences are shared: the scores of one process."""

import json
from pathlib import Path

import pytest

from lrsa_lightning.ruler.results import Record, read_records
from tests.distributed.fits import fit, strategy
from tests.runs import callback

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]


@pytest.fixture(scope="module")
def of_one_process() -> dict:
    return {}


@pytest.fixture
def evaluate(arguments, tmp_path, train_file):
    """A step of training with a RULER check before and after, and a validation; the records and the validation loss."""
    samples = {"tasks": ["niah_single_1"], "lengths": [512], "budgets": [0.5], "num_samples": 3}
    ruler = callback("RulerEval", **samples, generation="always")
    options = {
        **arguments,
        "trainer.callbacks": json.dumps([ruler]),
        "trainer.max_steps": "1",
        "trainer.val_check_interval": "1",
        "trainer.check_val_every_n_epoch": "null",
        "data.val_files": json.dumps([str(train_file)]),
        "data.micro_batch_size": "1",
    }

    def run(size: int, chosen: dict[str, str]) -> tuple[list[Record], list[float]]:
        found = fit(size, options | chosen, tmp_path)
        records = [read_records(path) for path in sorted(Path("runs/x/ruler").glob("step-*.jsonl"))]
        return [record for of_step in records for record in of_step], found.curve("val/loss")

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
def test_scores_and_validation_are_those_of_one_process(evaluate, of_one_process, size, chosen):
    if not of_one_process:
        of_one_process["records"], of_one_process["loss"] = evaluate(1, {})
    records, loss = evaluate(size, chosen)
    assert len(records) == 2 * 3
    expected = of_one_process["records"]
    assert [(r.id, r.budget, r.prediction) for r in records] == [(r.id, r.budget, r.prediction) for r in expected]
    assert [r.nll for r in records] == pytest.approx([r.nll for r in expected], rel=1e-4)
    # It runs after each micro-batch, the last time after the step.
    assert loss[-1] == pytest.approx(of_one_process["loss"][-1], rel=1e-5)
    assert loss[-1] < loss[0]
