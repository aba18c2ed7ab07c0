"""What can be checked of the report's pictures without looking at them."""

import pytest
from matplotlib.figure import Figure

from lrsa_lightning.plots import limits
from lrsa_lightning.report import Run, compare, draw_losses, figures
from tests.report.conftest import records


def run(label, losses=(), scores=None):
    return Run(label, label, records=scores or [], losses=(list(range(len(losses))), list(losses)))


@pytest.mark.parametrize(("steps", "weight"), [(20, 0.9), (1000, 0.9), (5000, 0.98)])
def test_about_a_hundredth_of_the_longest_curve_is_averaged(tmp_path, monkeypatch, steps, weight):
    smoothed = []

    def smooth(values, own):
        smoothed.append((len(values), own))
        return values

    monkeypatch.setattr(figures, "smooth", smooth)
    draw_losses([run("a", [1.0] * steps), run("none"), run("b", [2.0, 1.0])], tmp_path / "x.png")
    assert smoothed == [(steps, pytest.approx(weight)), (2, pytest.approx(weight))]
    draw_losses([run("a", [1.0])], tmp_path / "x.png", smoothing=0.5)
    assert smoothed[-1] == (1, 0.5)
    assert draw_losses([run("none")], tmp_path / "none.png") is None


def test_the_loss_axis_shows_the_smoothed_curves_and_no_outlier_of_the_raw_ones():
    axes = Figure().subplots()
    lines = axes.plot([0, 1, 2], [2.0, float("nan"), 3.0]) + axes.plot([0], [2.5])
    assert limits(lines, 0.2) == (pytest.approx(1.8), pytest.approx(3.2))
    assert limits(axes.plot([0, 1], [0.1, 2.1]), 0.2)[0] == 0
    assert limits(axes.plot([0, 1], [1.0, 1.0]), 0.2) is None


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.75, 0.8]])
def test_the_score_axis_holds_every_error_bar_is_20_wide_and_hardly_leaves_0_to_100(scores):
    own = [run("a", scores=records({"vt": scores})), run("b", scores=records({"vt": scores[:1]}))]
    comparison = compare(own)
    means, errors = comparison.means, comparison.errors.fillna(0)
    low, high = figures._score_limits(means, errors)
    for mean, error in zip(means.stack(), errors.stack(), strict=True):
        assert low < max(mean - error, -2.9)
        assert high > min(mean + error, 102.9)
    assert high - low >= 20
    assert (low >= -3, high <= 103) == (True, True)


def test_every_run_has_a_colour_of_its_own():
    for count in (3, 10, 25):
        labels = [str(i) for i in range(count)]
        assert len(set(figures.colours_of(labels).values())) == count
