"""Two real processes (DDP over gloo): the same losses and RULER scores as one, and a resume with other ranks."""

import json
from pathlib import Path

import pytest

from lrsa_lightning.ruler.records import read_records
from tests.processes import on_ranks
from tests.runs import callback, kept_curve, losses

pytestmark = pytest.mark.slow


@pytest.fixture
def fit(arguments, in_tmp_path):
    """Runs `lrsa fit` for 14 steps, of which an epoch has six, and returns the losses."""
    arguments |= {"data.micro_batch_size": "1", "trainer.max_steps": "14", "trainer.callbacks": kept_curve()}

    def run(devices: int, step: int | None = None) -> dict[int, float]:
        resumed = {} if step is None else {"ckpt_path": f"runs/x/checkpoints/step={step}.ckpt"}
        for process in on_ranks(*[{**arguments, **resumed}] * devices):
            assert process.status == 0, process.err
        return losses()

    return run


@pytest.mark.parametrize(("first", "then", "step"), [(1, 2, 8), (2, 1, 6)])
def test_a_run_resumes_with_another_number_of_ranks(fit, first, then, step):
    whole = fit(first)
    assert list(whole) == list(range(1, 15))
    assert fit(then, step) == pytest.approx(whole, abs=1e-5)


def test_ranks_share_a_ruler_check(fit, arguments):
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], num_samples=3, generation="always")
    arguments |= {"trainer.callbacks": json.dumps([ruler]), "trainer.max_steps": "1"}
    found = []
    for devices in (1, 2):
        arguments["run_name"] = "x"
        fit(devices)
        found.append(read_records(Path("runs/x/ruler/step-000000.jsonl")))
        Path("runs/x").rename(f"runs/of-{devices}")
    one, two = found
    assert len(one) == 9
    assert [(r.id, r.budget, r.prediction, r.kv_bytes > 0) for r in two] == [
        (r.id, r.budget, r.prediction, r.kv_bytes > 0) for r in one
    ]
    assert [r.nll for r in two] == pytest.approx([r.nll for r in one], rel=1e-5)
