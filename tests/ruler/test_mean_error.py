"""The standard error of a mean over tasks and budgets, against draws of the samples."""

import numpy as np
import pytest

from lrsa_lightning.ruler.mean_error import mean_error
from lrsa_lightning.ruler.records import Record


def record(task: str, sample: int, budget: str, score: float | None) -> Record:
    return Record(str(sample), task, 512, budget, 1.0, ["1"], [], "1", score)


def records(scores: dict[str, np.ndarray]) -> list[Record]:
    """Of scores [samples, budgets] by task."""
    return [
        record(task, sample, budget, float(score))
        for task, own in scores.items()
        for sample, row in enumerate(own)
        for budget, score in zip(("r1", "r0.5"), row, strict=True)
    ]


def test_it_is_the_spread_of_the_mean_over_draws_of_samples():
    """Budgets score the same samples, so their scores move together."""
    draw = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        scores = {task: (draw.random((12, 2)) < draw.random((12, 1))).astype(float) for task in ("vt", "fwe")}
        means.append(100 * np.mean([*scores.values()]))
        errors.append(mean_error(records(scores), "ruler/subset_mean"))
    assert np.mean(np.square(errors)) ** 0.5 == pytest.approx(np.std(means), rel=0.06)


def test_names_choose_the_records():
    """By hand: 0 and 100 have the standard error 50; equal scores have none."""
    own = [record("vt", sample, "r1", float(sample)) for sample in (0, 1)]
    own += [record("vt", sample, "r0.5", 1.0) for sample in (0, 1)] + [record("fwe", 0, "r1", None)]
    assert mean_error(own, "ruler/vt/512/r1") == pytest.approx(50)
    assert mean_error(own, "ruler/subset_mean/512/r0.5") == 0
    assert mean_error(own, "ruler/subset_mean") == pytest.approx(25)
    assert mean_error(own, "ruler/vt/1024/r1") is None
    assert mean_error(own, "val/loss") is None
    assert mean_error([*own, record("cwe", 0, "r1", 1.0)], "ruler/subset_mean") is None
