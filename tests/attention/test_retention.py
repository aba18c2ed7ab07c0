"""Which step has which retention ratio: against another computation of the formula, by hand, and what is refused."""

import hashlib
from collections import Counter
from itertools import pairwise
from math import inf

import pytest

from lrsa_lightning import LRSA
from lrsa_lightning.attention.retention import Retention
from lrsa_lightning.errors import InputError

RATIOS = [1.0, 0.5, 0.25]


def drawn(seed: int, step: int, weights: list[float]) -> float:
    """The formula of `Retention.place`, in hexadecimal digits and floats."""
    part = int(hashlib.sha256(f"{seed} {step}".encode()).hexdigest()[:16], 16) / 16**16
    for ratio, weight in zip(RATIOS, weights, strict=True):
        part -= weight / sum(weights)
        if part < 0:
            return ratio
    raise AssertionError


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 1.0], [0.5, 0.2, 0.3]])
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_the_draw_is_that_of_the_formula(weights, seed):
    retention = Retention.of(RATIOS, weights, "random", None)
    for step in range(300):
        for total_steps in (300, inf):
            assert RATIOS[retention.place(step, total_steps, seed)] == drawn(seed, step, weights or [1.0] * 3)


def test_other_seeds_draw_other_ratios():
    retention = Retention.of(RATIOS, None, "random", None)
    draws = {tuple(retention.place(step, inf, seed) for step in range(40)) for seed in range(20)}
    assert len(draws) == 20


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [6.0, 3.0, 1.0]])
def test_ratios_are_as_frequent_as_their_weights(weights):
    retention, steps = Retention.of(RATIOS, weights, "random", None), 6000
    counts = Counter(retention.place(step, inf, 7) for step in range(steps))
    for place, weight in enumerate(weights):
        part = weight / sum(weights)
        assert counts[place] / steps == pytest.approx(part, abs=3 * (part * (1 - part) / steps) ** 0.5)
        assert float(retention.fractions[place]) == pytest.approx(part)


def test_a_draw_says_nothing_about_the_next():
    retention = Retention.of([1.0, 0.5], None, "random", None)
    places = [retention.place(step, inf, 3) for step in range(4001)]
    repeated = sum(a == b for a, b in pairwise(places))
    assert repeated == pytest.approx(2000, abs=3 * 1000**0.5)


def course(total_steps: int, weights: list[float] | None, ratios: list[float] = RATIOS) -> list[float]:
    retention = Retention.of(ratios, weights, "curriculum", None)
    return [ratios[retention.place(step, total_steps, 0)] for step in range(total_steps)]


def test_a_curriculum_goes_through_the_list():
    assert course(6, None) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert course(10, None) == [1.0] * 4 + [0.5] * 3 + [0.25] * 3
    assert course(10, [2, 1, 1]) == [1.0] * 5 + [0.5] * 3 + [0.25] * 2
    assert course(10, [0.1, 0.2, 0.7]) == [1.0] + [0.5] * 2 + [0.25] * 7
    assert course(2, None) == [1.0, 0.5]
    assert course(4, None, [0.25, 1.0]) == [0.25, 0.25, 1.0, 1.0]


def test_a_step_beyond_the_last_has_the_last_ratio():
    assert Retention.of(RATIOS, None, "curriculum", None).place(12, 10, 0) == 2


def test_a_curriculum_needs_a_number_of_steps():
    with pytest.raises(InputError, match=r"curriculum divides the steps of the run: give trainer\.max_steps"):
        Retention.of(RATIOS, None, "curriculum", None).place(0, inf, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"retention_ratio": []}, r"retention_ratio \[\] is empty: list different ratios"),
        ({"retention_ratio": [0.5, 1.0, 0.5]}, r"retention_ratio \[0.5, 1.0, 0.5\] holds a ratio twice"),
        ({"retention_ratio": [1.0, 0.0]}, r"LRSA.retention_ratio is 0.0, but must be a number above 0, at most 1"),
        ({"retention_ratio": [1.5, 0.5]}, r"LRSA.retention_ratio is 1.5, but must be a number above 0, at most 1"),
        ({"retention_ratio": "1.0, 0.5"}, r"LRSA.retention_ratio is '1.0, 0.5'"),
        ({"retention_ratio": [1.0, 0.01], "lag_size": 64}, r"retention_ratio 0.01 of lag_size 64 keeps no token"),
        ({"retention_weights": [1.0]}, r"retention_weights \[1.0\] must have a weight for each of retention_ratio"),
        ({"retention_weights": [1.0, 2.0, 0.0]}, r"LRSA.retention_weights is 0.0, but must be a finite number above 0"),
        ({"retention_weights": [1.0, inf, 1.0]}, r"LRSA.retention_weights is inf"),
        ({"retention_weights": 2.0}, r"LRSA.retention_weights is 2.0, but must be a list"),
        (
            {"retention_schedule": "cosine"},
            r"retention_schedule is 'cosine', but must be one of 'random', 'cur",
        ),
        ({"serving_ratio": 0.75}, r"serving_ratio 0.75 is not in retention_ratio \[1.0, 0.5, 0.25\]"),
        ({"scorer": "window"}, r"scorer window keeps no token at any retention_ratio"),
        ({"retention_ratio": 0.5, "retention_weights": [1.0]}, r"retention_ratio is 0.5, one for all steps"),
        ({"retention_ratio": 0.5, "retention_schedule": "curriculum"}, r"curriculum and serving_ratio need a list"),
        ({"retention_ratio": 0.5, "serving_ratio": 0.5}, r"retention_ratio is 0.5, one for all steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        LRSA(**{"retention_ratio": RATIOS, **arguments})
