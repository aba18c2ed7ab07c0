"""Which folders a report reads, what it takes from them, and what it refuses."""

import json
import math

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.report import read_runs
from tests.report.conftest import records

SCORED, RATED = records({"vt": [1.0, 0.0]}), records({"vt": [None, None]}, nll=1.0)


def test_runs_and_evaluation_folders_are_mixed_and_named(make_run):
    attention = {"class_path": "lrsa_lightning.attention.LRSA", "init_args": {"lag_size": 64, "retention_ratio": 0.5}}
    run = make_run("lrsa", {3: SCORED}, [2.0, 1.0], {"model": {"attention": attention}})
    first, second = read_runs([str(run), f"base={make_run('eval', SCORED)}"])
    assert (first.label, first.step, first.losses) == ("lrsa", 3, ([1, 2], [2.0, 1.0]))
    assert first.config.attention == "LRSA(lag_size=64, retention_ratio=0.5)"
    assert (second.label, second.step, second.losses, second.config.attention) == ("base", None, ([], []), "")
    assert [mean.score for mean in (*first.scored.values(), *second.scored.values())] == [50, 50]


def test_elastic_runs_are_told_apart(make_run):
    labels = []
    for schedule, weights in (("random", None), ("curriculum", [1, 2])):
        given = {"retention_ratio": [1.0, 0.5], "retention_schedule": schedule, "retention_weights": weights}
        attention = {"class_path": "lrsa_lightning.attention.LRSA", "init_args": given}
        folder = make_run(schedule, {3: SCORED}, [2.0], {"model": {"attention": attention}})
        labels.append(read_runs([str(folder)])[0].config.attention)
    assert labels == [
        "LRSA(retention_ratio=[1.0, 0.5], retention_schedule=random)",
        "LRSA(retention_ratio=[1.0, 0.5], retention_weights=[1, 2], retention_schedule=curriculum)",
    ]


def test_a_folder_with_an_equals_sign_needs_no_label(make_run):
    (run,) = read_runs([str(make_run("lr=1", SCORED))])
    assert run.label == "lr=1"


def test_the_last_check_with_scores_or_the_given_step(make_run):
    folder = str(make_run("x", {0: SCORED, 500: SCORED[:1], 1000: RATED}))
    assert [(run.step, len(run.records)) for run in read_runs([folder])] == [(500, 1)]
    assert [(run.step, len(run.records)) for run in read_runs([folder], step=0)] == [(0, 2)]
    for step, others in {1000: "0, 500", 7: "0, 500, 1000"}.items():
        with pytest.raises(InputError, match=rf"no scores of step {step}: .* \({others}\)"):
            read_runs([folder], step)


def test_without_scores_the_last_rating_is_read(make_run):
    (run,) = read_runs([str(make_run("x", {0: RATED, 5: RATED}))])
    assert (run.step, run.scored, len(run.means)) == (5, {}, 1)


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
    with pytest.raises(InputError, match=r"results\.jsonl, line 3: .*(expected a JSON object|remove the line)"):
        read_runs([str(folder)])


def test_a_malformed_metric_and_configuration_are_named(make_run):
    folder = make_run("x", losses=[1.0])
    (folder / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n{"train/loss": 1.0}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: step is None, expected a whole number"):
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
    with pytest.raises(InputError, match=r"two inputs are called 'a:b'"):  # their pictures would have one name
        read_runs([f"a b={folder}", f"a:b={folder}"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": "one", "train/loss": 1.0}', "step is 'one'"),
        ('{"step": null, "train/loss": 1.0}', "step is None"),
        ('{"step": 1, "train/loss": "low"}', "train/loss is 'low'"),
        ('{"step": 1, "train/loss": [1.0]}', "train/loss is"),
        ("[1]", "expected a JSON object, not list"),
        ('{"step": 1, "tra', "expected a JSON object .*Unterminated string"),
        ("\udcff", "expected a JSON object .*decode"),
    ],
)
def test_a_metrics_line_of_wrong_values_is_named(make_run, line, reason):
    file = make_run("x", losses=[1.0]) / "metrics.jsonl"
    content = '{"step": 0, "train/loss": 1.0}\n' + line + '\n{"step": 2, "train/loss": 1.0}\n'
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line 2: {reason}"):
        read_runs([str(file.parent)])


def test_a_loss_that_is_no_number_and_a_metrics_file_cut_short_are_read(make_run):
    folder = make_run("x", losses=[1.0])
    rows = ['{"step": 1, "train/loss": null}', '{"step": 2, "train/loss": NaN}', '{"step": 3, "train/loss": 1}']
    (folder / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 4, "train/lo']))
    (run,) = read_runs([str(folder)])
    assert run.losses[0] == [1, 2, 3]
    assert [math.isnan(loss) for loss in run.losses[1]] == [True, True, False]


@pytest.mark.parametrize("content", ["", "5", "[1]", "a: [", "\udcff"])
def test_a_configuration_that_is_none_is_named(make_run, content):
    folder = make_run("x", SCORED)
    (folder / "config.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.yaml.*expected the configuration"):
        read_runs([str(folder)])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": None, "data": None, "trainer": None},
        {"model": 5, "data": [1], "trainer": "x"},
        {"model": {"attention": {"class_path": 5, "init_args": [1]}}, "trainer": {"callbacks": {"a": 1}}},
        {"model": {"attention": "vanilla"}, "trainer": {"callbacks": [None, "RulerEval"]}},
    ],
)
def test_a_configuration_without_its_keys_is_read(make_run, config):
    (run,) = read_runs([str(make_run("x", {3: SCORED}, [1.0], config))])
    assert (run.config.trained_on, run.cache_sizes) == ({}, {})
    assert isinstance(run.config.attention, str)


def test_the_configuration_of_the_last_resume_counts(make_run):
    folder = make_run("x", {3: SCORED}, [1.0], {"trainer": {"max_steps": 3}})
    (folder / "config-1.yaml").write_text("trainer: {max_steps: 6}")
    (run,) = read_runs([str(folder)])
    assert run.config.trained_on == {"trainer.max_steps": 6}


def test_settings_of_an_evaluation_that_are_damaged_are_named(make_run):
    folder = make_run("x", SCORED)
    (folder / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json: .*expected the settings of `lrsa eval`"):
        read_runs([str(folder)])


@pytest.mark.parametrize("name", ["results.jsonl", "metrics.jsonl", "config.yaml"])
def test_a_folder_where_a_file_belongs_is_named(make_run, name):
    folder = make_run("x", {3: SCORED}, [1.0], {})
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(InputError, match=name):
        read_runs([str(folder)])


def test_cache_sizes_are_those_of_the_callback_or_of_the_evaluation(make_run):
    callback = {"class_path": "lrsa_lightning.callbacks.RulerEval", "init_args": {"lag_divisor": 8}}
    config = {"trainer": {"callbacks": [{"class_path": "lrsa_lightning.callbacks.LossCurve"}, callback]}}
    evaluation = make_run("eval", SCORED)
    (evaluation / "settings.json").write_text(json.dumps({"lag_divisor": 4, "sink_size": 2, "model": "x"}))
    runs = read_runs([str(make_run("run", {3: SCORED}, [1.0], config)), str(evaluation)])
    assert [run.cache_sizes for run in runs] == [
        {"lag_divisor": 8, "sink_size": 16},
        {"lag_divisor": 4, "sink_size": 2},
    ]


@pytest.mark.parametrize("key", ["micro_batch_size", "num_workers", "prepare_workers", "cache_dir", "val_files"])
def test_keys_without_an_effect_on_the_samples_are_not_compared(make_run, key):
    config = {"seed_everything": 1, "data": {key: 1, "seq_len": 2}, "trainer": {"max_steps": 3, "max_epochs": 4}}
    (run,) = read_runs([str(make_run("x", {3: SCORED}, [1.0], config | {"run_name": "x"}))])
    assert run.config.trained_on == {
        "data.seq_len": 2,
        "trainer.max_steps": 3,
        "trainer.max_epochs": 4,
        "seed_everything": 1,
    }
