"""The last block of `lrsa fit`."""

from types import SimpleNamespace

from lrsa_lightning.commands.run_summary import _scores


def test_each_budget_has_its_mean_once():
    """With all 13 tasks RULER's average is the subset's mean under a second name."""
    means = {f"ruler/{name}/4096/{budget}": value for name in ("subset_mean", "average")
             for budget, value in {"r1": 57.43624, "r0.5": 45.0}.items()}  # fmt: skip
    trainer = SimpleNamespace(callback_metrics=means | {"ruler/vt/4096/r1": 1.0, "ruler/subset_mean": 50.0})
    assert [*_scores(trainer)] == [("RULER", "length 4096: r1 57.4, r0.5 45.0")]
