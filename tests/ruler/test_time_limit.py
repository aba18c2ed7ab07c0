"""The time of an evaluation, on a clock that the test moves on."""

import pytest

from lrsa_lightning.ruler import progress as progress_module
from lrsa_lightning.ruler import time_limit as module
from lrsa_lightning.ruler.batches import Batch
from lrsa_lightning.ruler.progress import ProgressLines
from lrsa_lightning.ruler.time_limit import TimeLimit


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(progress_module, "monotonic", lambda: Clock.now)
    return Clock


def batch(length: int, number: int = 2, budget: str = "r1") -> Batch:
    return Batch(length, budget, [{}] * number)


def test_batches_are_admitted_by_the_best_rate_at_the_nearest_length(clock):
    limit = TimeLimit(30.0)
    assert limit.expected([batch(4096)]) == 0  # nothing is known yet
    assert limit.admits([batch(4096)])
    limit.took(batch(4096), 10.0)  # compiles
    limit.took(batch(4096, 1), 2.0)
    limit.took(batch(4096, 1), 9.0)  # others use the machine
    assert limit.expected([batch(4096), batch(4096)]) == pytest.approx(8.0)
    assert limit.expected([batch(8192, 3)]) == pytest.approx(12.0)
    limit.took(batch(32768), 20.0)
    assert limit.expected([batch(8192, 3), batch(32768, 1)]) == pytest.approx(22.0)
    clock.now += 20.0
    assert limit.left == 10.0
    assert limit.admits([batch(32768, 1, "r0.5")]) is False  # as long as what is left
    assert limit.admits([batch(4096, 4)])
    assert limit.admits()
    clock.now += 10.0
    assert not limit.admits()


def test_the_first_rank_decides(clock):
    asked = []
    limit = TimeLimit(1.0, lambda own: asked.append(own) or True)
    clock.now += 2.0
    assert limit.admits()
    assert asked == [False]
    assert TimeLimit(None, asked.append).admits()  # without a limit nobody needs to agree
    assert asked == [False]


def test_the_rest_is_what_has_not_been_measured(clock):
    limit = TimeLimit()
    every = [batch(4096), batch(32768), batch(4096)]
    limit.took(every[0], 1.0)
    assert limit.rest(every) == pytest.approx(9.0)
    assert not limit.has_measured(every)
    limit.took(every[1], 4.0)
    assert limit.rest(every) == pytest.approx(1.0)
    assert limit.has_measured(every)


def test_a_line_of_the_log_every_ten_seconds_says_how_far_the_work_is(clock, caplog):
    caplog.set_level("INFO", "lrsa_lightning")
    lines = ProgressLines("RULER", 20)
    for _ in range(10):
        clock.now += 4
        lines.advance("vt/4096/r1")
    lines.done = 18  # others have made some
    clock.now += 10
    lines.advance(left=3.6)
    assert [record.message for record in caplog.records] == [
        "RULER: 3 of 20 batches done (vt/4096/r1), 0:01:08 left",
        "RULER: 6 of 20 batches done (vt/4096/r1), 0:00:56 left",
        "RULER: 9 of 20 batches done (vt/4096/r1), 0:00:44 left",
        "RULER: 19 of 20 batches done, 0:00:04 left",
    ]
