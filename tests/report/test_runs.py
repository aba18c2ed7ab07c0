"""Which folders a report reads, what it takes from them, and what it refuses."""

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.report import read_runs
from tests.report.conftest import records

SCORED, RATED = records({"vt": [1.0, 0.0]}), records({"vt": [None, None]}, nll=1.0)


def test_runs_and_evaluation_folders_are_mixed_and_named(make_run):
    attention = {"class_path": "lrsa_lightning.attention.LRSA", "init_args": {"lag_size": 64, "retention_ratio": 0.5}}
    run = make_run("lrsa", {3: SCORED}, [2.0, 1.0], {"model": {"attention": attention}})
    first, second = read_runs([str(run), f"base={make_run('eval', SCORED)}"])
    assert (first.label, first.step, first.losses) == ("lrsa", 3, ([0, 1], [2.0, 1.0]))
    assert first.attention == "LRSA(lag_size=64, retention_ratio=0.5)"
    assert (second.label, second.step, second.losses, second.attention) == ("base", None, ([], []), "")
    assert [cell.score for cell in (*first.scored.values(), *second.scored.values())] == [50, 50]


def test_a_folder_with_an_equals_sign_needs_no_label(make_run):
    (run,) = read_runs([str(make_run("lr=1", SCORED))])
    assert run.label == "lr=1"


def test_the_last_check_with_scores_or_the_one_asked_for(make_run):
    folder = str(make_run("x", {0: SCORED, 500: SCORED[:1], 1000: RATED}))
    assert [(run.step, len(run.records)) for run in read_runs([folder])] == [(500, 1)]
    assert [(run.step, len(run.records)) for run in read_runs([folder], step=0)] == [(0, 2)]
    for step, others in {1000: "0, 500", 7: "0, 500, 1000"}.items():
        with pytest.raises(InputError, match=rf"no scores of step {step}: .* \({others}\)"):
            read_runs([folder], step)


def test_without_scores_the_last_rating_is_read(make_run):
    (run,) = read_runs([str(make_run("x", {0: RATED, 5: RATED}))])
    assert (run.step, run.scored, len(run.cells)) == (5, {}, 1)


def test_a_last_line_that_was_cut_short_is_left_out(make_run):
    folder = make_run("x", SCORED)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"id": "vt-40')
    assert len(read_runs([str(folder)])[0].records) == 2


@pytest.mark.parametrize("line", ["{'id': 1}", "[]", '{"id": "x"}', '{"id": "x", "other": 1}'])
def test_a_malformed_record_is_named(make_run, line):
    folder = make_run("x", SCORED)
    with (folder / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl:3: .*expected a RULER record as one JSON object"):
        read_runs([str(folder)])


def test_a_malformed_metric_and_configuration_are_named(make_run):
    folder = make_run("x", losses=[1.0])
    (folder / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n{"train/loss": 1.0}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: 'step'; expected metrics with their step"):
        read_runs([str(folder)])
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config\.yaml: line 2.*expected the configuration"):
        read_runs([str(folder)])


def test_folders_without_results_and_equal_names_are_refused(make_run, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_runs([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="holds neither RULER records"):
        read_runs([str(make_run("empty", config={}))])
    folder = make_run("x", SCORED)
    with pytest.raises(InputError, match=r"two inputs are called 'x'.*LABEL="):
        read_runs([str(folder), f"x={folder}"])
