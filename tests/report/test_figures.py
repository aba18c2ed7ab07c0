"""What can be checked of the report's pictures without looking at them."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from lrsa_lightning.report import Run, compare, draw_losses, figures
from lrsa_lightning.report.figures import draw_means
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


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: saved.append(self))
    return saved


@pytest.mark.parametrize(("losses", "scale"), [([3.0, 9.0, 2.0, float("nan")], "linear"), ([11.0, 1.0, 0.5], "log")])
def test_the_loss_axis_shows_every_raw_loss(drawn, losses, scale):
    draw_losses([run("a", losses)], "x.png")
    low, high = drawn[0].axes[0].get_ylim()
    finite = [loss for loss in losses if loss == loss]
    assert low < min(finite) < max(finite) < high
    assert drawn[0].axes[0].get_yscale() == scale


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.9, 1.0, 1.0], [0.75, 0.8]])
def test_the_score_axis_is_0_to_100_and_no_error_bar_leaves_it(drawn, scores):
    comparison = compare([run("a", scores=records({"vt": scores}))])
    draw_means(comparison, "x.png", "title", ["a"])
    axes = drawn[0].axes[0]
    assert axes.get_ylim() == (0, 100)
    (bar,) = axes.containers
    (segment,) = bar.lines[2][0].get_segments()
    mean, error = comparison.means.iloc[0, 0], comparison.errors.iloc[0, 0]
    assert list(segment[:, 1]) == pytest.approx([max(0, mean - error), min(100, mean + error)])


def test_error_bars_are_clipped_at_both_ends():
    below, above = figures._within_scores(pd.Series([95.0, 4.0, 50.0]), pd.Series([10.0, 10.0, 10.0]))
    assert (below.tolist(), above.tolist()) == ([10, 4, 10], [5, 10, 10])


def test_every_run_has_a_colour_of_its_own():
    for count in (3, 10, 25):
        labels = [str(i) for i in range(count)]
        assert len(set(figures.colours_of(labels).values())) == count
