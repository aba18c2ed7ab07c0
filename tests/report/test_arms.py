"""Arms: seeds together, errors over samples and over seeds, differences sample by sample; all by hand."""

import csv
from statistics import stdev

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.report import Run
from lrsa_lightning.report.arms import Arm, arms_of, columns_of, difference, estimate
from lrsa_lightning.report.comparison import compare
from lrsa_lightning.run.config import RunConfig
from tests.refusals import refused
from tests.report.conftest import records


def run(label, scores, seed=0, **parts):
    config = {"seed_everything": seed, "model": {"lr": 1.0, **parts}, "data": {"seq_len": 9, "seed": seed}}
    return Run(label, label, step=3, records=records(scores), config=RunConfig(config))


@pytest.fixture
def arms():
    """Two seeds of one configuration, and one of another."""
    runs = [
        run("full", {"vt": [1.0, 0.0, 1.0, 0.0], "fwe": [0.5, 1.0]}, seed=0),
        run("ours", {"vt": [1.0, 1.0, 1.0, 0.0], "fwe": [1.0, 1.0]}, seed=0, gguf_file="x"),
        run("full-1", {"vt": [1.0, 1.0, 1.0, 0.0], "fwe": [0.0, 1.0]}, seed=1),
    ]
    return arms_of(runs), columns_of(compare(runs))


def test_runs_that_differ_in_their_seed_alone_are_an_arm(arms):
    assert [(arm.label, [run.label for run in arm.runs]) for arm in arms[0]] == [
        ("full", ["full", "full-1"]),
        ("ours", ["ours"]),
    ]


def test_a_base_model_or_an_earlier_check_is_no_seed_of_the_trained_one():
    trained = run("a", {"vt": [1.0]})
    base = Run("b", "b", step=0, records=trained.records, config=trained.config)
    folders = [Run(name, name, records=trained.records) for name in "cd"]
    assert [arm.label for arm in arms_of([trained, base, *folders])] == ["a", "b", "c", "d"]


def test_the_errors_of_a_mean_by_hand(arms):
    (full, ours), columns = arms
    found = estimate(full.scores("r1"), columns["4K"])
    # Over the seeds: vt 100, 50, 100, 0 and fwe 25, 100.
    assert found.mean == pytest.approx((62.5 + 62.5) / 2)
    errors = (stdev([100, 50, 100, 0]) / 4**0.5, stdev([25, 100]) / 2**0.5)
    assert found.of_samples == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)
    # By seed: (50 + 75) / 2 and (75 + 50) / 2.
    assert found.of_seeds == pytest.approx(0)
    vt = estimate(full.scores("r1"), columns["vt/4K"])
    assert (vt.mean, vt.of_seeds) == (62.5, pytest.approx(stdev([50, 75]) / 2**0.5))
    assert estimate(ours.scores("r1"), columns["4K"]).of_seeds is None
    assert estimate(ours.scores("r0.5"), columns["4K"]) is None


def test_a_difference_is_of_the_same_samples(arms):
    (full, ours), columns = arms
    found = difference(ours.scores("r1"), full.scores("r1"), columns["4K"])
    # Ours less full: vt 0, 50, 0, 0 and fwe 75, 0.
    assert found.mean == pytest.approx((12.5 + 37.5) / 2)
    errors = (stdev([0, 50, 0, 0]) / 4**0.5, stdev([75, 0]) / 2**0.5)
    assert found.of_samples == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)
    assert found.of_seeds is None
    twice = Arm("two", [*ours.runs, run("ours-1", {"vt": [0.0] * 4, "fwe": [1.0, 1.0]}, seed=1)])
    of_seeds = difference(twice.scores("r1"), full.scores("r1"), columns["vt/4K"]).of_seeds
    assert of_seeds == pytest.approx((stdev([75, 0]) ** 2 / 2 + stdev([50, 75]) ** 2 / 2) ** 0.5)


def test_an_average_over_lengths_weighs_each_length_the_same():
    short, long = records({"vt": [1.0, 0.0], "fwe": [0.0, 0.0]}), records({"vt": [1.0, 1.0]}, 8192)
    own = Run("a", "a", records=[*short, *long])
    columns = columns_of(compare([own]))
    found = estimate(Arm("a", [own]).scores("r1"), columns["Avg"])
    assert found.mean == pytest.approx((25 + 100) / 2)
    assert found.of_samples == pytest.approx(50 / 2 / 2)


def test_only_samples_that_all_seeds_have_count():
    own = Arm("a", [run("a", {"vt": [1.0, 0.0, 0.0]}), run("b", {"vt": [1.0, 0.0]}, seed=1)])
    assert [sorted(scores["vt", 4096].values()) for scores in own.scores("r1")] == [[0, 100], [0, 100]]


def test_the_command_writes_both_tables(make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label, seed, attention, first in (("v0", 0, "Vanilla", 0.0), ("v1", 1, "Vanilla", 1.0), ("l0", 0, "LRSA", 1.0)):
        config = {"seed_everything": seed, "model": {"attention": attention}, "data": {"seed": seed}}
        make_run(label, {3: records({"vt": [first, 1.0, 0.0]})}, [2.0, 1.0], config)
    main(["report", "v0", "v1", "l0", "--output", "out", "--baseline", "v0"])
    assert capsys.readouterr().out.startswith("Subset mean over 1 task (vt): mean ± standard error over samples")
    rows = [line.split(" | ") for line in (tmp_path / "out/table_arms.md").read_text().splitlines()]
    assert rows[4] == ["| v0", "2", "1x", "50.0 ± 28.9 ± 16.7", "50.0 ± 28.9 ± 16.7 |"]
    assert rows[5] == ["| l0", "1", "1x", "66.7 ± 33.3 ± –", "66.7 ± 33.3 ± – |"]
    assert rows[-1] == ["| l0", "1", "1x", "+16.7 ± 16.7 ± –", "+16.7 ± 16.7 ± – |"]
    with (tmp_path / "out/table_arms.csv").open() as file:
        found = {(row["model"], row["column"]): row for row in csv.DictReader(file)}
    assert found["l0", "vt/4K"]["difference mean"] == "16.6667"
    assert found["v0", "4K"]["difference mean"] == ""
    refused(
        capsys,
        lambda: main(["report", "v0", "l0", "--baseline", "v9"]),
        "--baseline v9 is no scored run of the report: give one of v0, l0",
    )


def test_without_seeds_and_baseline_there_is_no_such_table(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("a", {3: records({"vt": [1.0]})})
    main(["report", "a", "--output", "out"])
    assert not list((tmp_path / "out").glob("table_arms*"))
