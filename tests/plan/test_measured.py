"""The plan against measurements: one H100 80GB, torch 2.11, Qwen2.5-1.5B's shape, one row a micro-batch.

The figures are peaks of `torch.cuda.max_memory_allocated` and medians of steps.
"""

import pytest

from lrsa_lightning import LRSA, Vanilla
from lrsa_lightning.devices import H100
from lrsa_lightning.plan import predict
from tests.plan.runs import run_of

LONG = {"seq_len": 131072}
FUSED = {"is_fused": True}
QUARTER = {"mode": LRSA(retention_ratio=0.25)}
VANILLA = {"mode": Vanilla()}


@pytest.mark.parametrize(
    ("changed", "gib"),
    [
        ({}, 16.2),
        (QUARTER, 16.2),
        (VANILLA, 16.1),
        ({"precision": "bf16-mixed"}, 30.4),
        ({"precision": "bf16-mixed", "global_batch_size": 16}, 34.05),
        (FUSED, 16.1),
        (FUSED | {"recompute": "none"}, 75.8),
        (LONG, 37.2),
        (LONG | QUARTER, 37.2),
        (LONG | VANILLA, 37.2),
    ],
    ids=str,
)
def test_memory_is_within_a_tenth_of_measured_peaks(changed, gib):
    assert predict(run_of(**changed), H100).peak / 2**30 == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(
    ("changed", "ms"),
    [
        ({}, 1270),
        (QUARTER, 1125),
        (VANILLA, 1533),
        ({"precision": "bf16-mixed"}, 1419),
        (FUSED, 1038),
        (FUSED | QUARTER, 886),
        (FUSED | VANILLA, 1287),
        (FUSED | {"recompute": "none"}, 839),
        (LONG, 9133),
        (LONG | QUARTER, 6464),
        (LONG | VANILLA, 13944),
    ],
    ids=str,
)
def test_a_step_takes_within_15_percent_of_the_measured_time(changed, ms):
    assert 1000 * predict(run_of(**changed), H100).times.step == pytest.approx(ms, rel=0.15)


def test_auto_keeps_more_the_shorter_the_rows_and_always_fits():
    kept = []
    for seq_len in (8192, 32768, 131072):
        prediction = predict(run_of(**FUSED, precision="bf16-master", recompute="auto", seq_len=seq_len), H100)
        assert prediction.fits
        kept.append(sum(policy in ("none", "selective") for policy in prediction.policies))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 28 > kept[1] > kept[2]
