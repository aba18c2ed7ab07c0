"""RULER in training, through the command: what a check measures, when, and what it leaves alone."""

import json
from inspect import signature
from pathlib import Path

import pytest

from lrsa_lightning.callbacks import ruler_eval as module
from lrsa_lightning.cli import main
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.records import read_records
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.trained_model import RunCheckpoint
from tests.runs import callback, checkpoints, command, losses, metrics

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RULER = {"tasks": ["niah_single_1"], "lengths": [512], "budgets": [0.5], "num_samples": 1, "every_n_steps": 3}


@pytest.fixture
def fit(arguments):
    """Runs six steps with RulerEval and returns the checks' figures by step."""

    def run(subcommand="fit", more=(), **options) -> dict[int, dict[str, float]]:
        arguments["trainer.callbacks"] = json.dumps([callback("RulerEval", **RULER | options), *more])
        main(command(arguments, subcommand))
        return {row["step"]: row for row in metrics() if any(key.startswith("ruler") for key in row)}

    return run


def generated(checks):
    return [step for step, row in checks.items() if "ruler/niah_single_1/512/r0.5" in row]


@pytest.mark.parametrize(("when", "steps"), [("ends", [0, 6]), ("always", [0, 3, 6]), ("never", [])])
def test_every_check_rates_the_references_and_some_generate(fit, when, steps):
    checks = fit(generation=when)
    assert list(checks) == [0, 3, 6]
    assert all("ruler_nll/niah_single_1/512/r0.5" in row for row in checks.values())
    assert generated(checks) == steps


def test_without_an_interval_there_is_one_check_after_the_last_step(fit):
    checks = fit(every_n_steps=None)
    assert [*checks] == generated(checks) == [6]


def test_lrsa_validate_scores_a_checkpoint_without_validation_files(fit, arguments, capsys):
    checks = fit(more=json.loads(checkpoints(6)))
    records = Path("runs/x/ruler/step-000006.jsonl")
    before = read_records(records)
    records.unlink()
    arguments["ckpt_path"] = "runs/x/checkpoints/step=6.ckpt"
    after = fit("validate")
    assert read_records(records) == before
    assert after[6] == checks[6]


def test_a_resume_does_not_repeat_an_earlier_check(fit, arguments):
    arguments["data.micro_batch_size"] = "1"  # four micro-batches a step: the first of them is no step yet
    checks = fit(generation="never", more=json.loads(checkpoints(3)))
    records = Path("runs/x/ruler/step-000003.jsonl")
    written = records.stat().st_mtime_ns
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=runs/x/checkpoints/step=3.ckpt"])
    assert records.stat().st_mtime_ns == written
    records.unlink()  # as if the run had been killed before it
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=runs/x/checkpoints/step=3.ckpt"])
    assert records.exists()
    rows = [row for row in metrics() if "ruler_nll/subset_mean" in row]
    assert {row["step"]: row["ruler_nll/subset_mean"] for row in rows} == {
        step: row["ruler_nll/subset_mean"] for step, row in checks.items()
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_samples": 2, "max_seconds": None}, "1 samples, not 2"),
        ({"seed": 7}, "niah_single_1-512-42-0 is none of the 1"),
    ],
)
def test_a_resume_with_other_samples_is_refused(fit, arguments, capsys, options, reason):
    fit(generation="never", more=json.loads(checkpoints(3)))
    arguments["ckpt_path"] = "runs/x/checkpoints/step=3.ckpt"
    records = Path("runs/x/ruler/step-000006.jsonl")
    before = records.read_bytes()
    with pytest.raises(SystemExit):
        fit(generation="never", **options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error")]
    assert f"runs/x/ruler/step-000000.jsonl holds scores of niah_single_1 at length 512: {reason}" in line
    assert records.read_bytes() == before
    fit(generation="never", tasks=["niah_multikey_2"])  # another cell has another name in the curves


def test_every_option_reaches_the_samples_and_the_evaluator(fit, monkeypatch, tokenizer):
    made = {}

    def make_evaluator(*args, **kwargs):
        made.update(signature(RulerEvaluator).bind(*args, **kwargs).arguments)
        return RulerEvaluator(*args, **kwargs)

    def make_store(folder, tokenizer, settings):
        made["settings"] = settings
        return in_cache(folder, tokenizer, settings)

    in_cache = SampleStore.in_cache
    monkeypatch.setattr(module, "RulerEvaluator", make_evaluator)
    monkeypatch.setattr(SampleStore, "in_cache", make_store)
    sizes = {"lag_divisor": 20, "sink_size": 3, "batch_size": 5, "prefill_chunk_size": 99}
    of_samples = {"seed": 5, "template": "chatml"}
    fit(**sizes, **of_samples, budgets=[1.0, 0.3], lengths=[700], num_samples=2, generation="never", every_n_steps=100)
    assert {key: made[key] for key in sizes} == sizes
    assert made["budgets"] == [1.0, 0.3]
    assert [*made["end_tokens"]] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert {key: getattr(made["settings"], key) for key in of_samples} == of_samples
    assert {place: len(rows) for place, rows in made["samples"].items()} == {("niah_single_1", 700): 2}


@pytest.mark.parametrize(
    ("given", "trained", "own"), [("auto", "chatml", None), ("base", "base", None), ("auto", "chatml", "base")]
)
def test_ruler_asks_under_the_template_of_training(fit, arguments, monkeypatch, given, trained, own):
    """The train file holds chats, and the tokenizer has a chat template."""
    made, in_cache = [], SampleStore.in_cache
    monkeypatch.setattr(SampleStore, "in_cache", lambda *args: made.append(args[-1].template) or in_cache(*args))
    arguments |= {"data.template": given, "trainer.max_steps": "1"}
    fit(template=own, generation="never", every_n_steps=100, more=json.loads(checkpoints(1)))
    assert made == [own or trained]
    assert RunCheckpoint(Path("runs/x/checkpoints/step=1.ckpt")).template == trained


def test_a_default_length_without_meaning_for_a_budget_is_left_out(fit, caplog):
    assert fit(tasks=None, lengths=None, sink_size=200, generation="never") == {}
    assert "RULER is left out at length 160" in caplog.text
    assert len(losses()) == 6


def test_checkpoints_can_be_kept_by_a_score(fit):
    best = {"monitor": "ruler_nll/subset_mean", "every_n_train_steps": 3, "filename": "{step}", "save_top_k": 1}
    fit(generation="never", more=[{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best}])
    nll = {row["step"]: row["ruler_nll/subset_mean"] for row in metrics() if "ruler_nll/subset_mean" in row}
    (kept,) = Path("runs/x/checkpoints").iterdir()
    assert kept.name == f"step={min((3, 6), key=nll.get)}.ckpt"


def test_the_light_default_takes_the_tasks_that_need_no_file_and_fit(fit):
    checks = fit(tasks=None, lengths=[1024], generation="never")
    names = {key.split("/")[1] for key in checks[6] if key.startswith("ruler_nll/")}
    assert names == {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "fwe", "subset_mean"}


def test_training_goes_on_where_nothing_of_the_light_default_fits(fit):
    assert fit(tasks=None, lengths=[150], generation="never") == {}
    assert len(losses()) == 6


def test_lengths_beyond_the_models_positions_are_refused(fit, capsys):
    with pytest.raises(SystemExit):
        fit(lengths=[4096])
    assert "RulerEval.lengths 4096 is beyond the model's 1024 positions" in capsys.readouterr().err


def test_a_task_whose_file_is_missing_fails_before_training(fit, capsys):
    for options, message in (
        ({"tasks": ["qa_1"]}, "RULER qa_1 needs the file squad: give squad.json, from https://"),
        ({"tasks": ["qa_1"], "sources": {"squad": "nowhere.json"}}, "squad file nowhere.json does not exist"),
    ):
        with pytest.raises(SystemExit):
            fit(**options)
        assert message in capsys.readouterr().err
    assert not Path("runs/x/metrics.jsonl").exists()
    assert fit(tasks=["niah_single_1", "qa_1"], skip_missing=True, generation="never")


def test_the_loss_curve_is_the_same_with_and_without(fit, arguments):
    fit(generation="always")
    with_ruler = losses()
    main(command({**arguments, "trainer.callbacks": "[]", "run_name": "without"}))
    assert losses("without") == with_ruler


def test_settings_of_earlier_versions_are_read_with_a_line(fit, caplog):
    fit(generation="never", sequence_parallel="auto", official_compat=False, every_n_steps=100)
    lines = [record.message for record in caplog.records if "gone" in record.message]
    assert lines == [
        "RulerEval.official_compat is gone and ignored: remove it",
        "RulerEval.sequence_parallel is gone and ignored: each rank scores its own samples, in smaller batches where "
        "their caches do not fit",
    ]


def test_official_compat_is_refused_with_the_way_out(fit, capsys):
    with pytest.raises(SystemExit):
        fit(official_compat=True)
    assert (
        "RulerEval.official_compat is gone: make samples with RULER's own prepare.py and score them with "
        "`lrsa eval --samples FOLDER`"
    ) in capsys.readouterr().err
