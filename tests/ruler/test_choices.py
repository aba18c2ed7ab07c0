"""Refusals of tasks, lengths, budgets and counts, before a model is loaded or a sample is made."""

import json
import runpy
from pathlib import Path

import pytest

from lrsa_lightning.callbacks import RulerEval
from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.sources import Sources

SCRIPTS = Path(__file__).parents[2] / "scripts"
WRONG = [
    ({"tasks": []}, "RulerEval.tasks is empty"),
    ({"tasks": "vt"}, "RulerEval.tasks is 'vt', but must be a list"),
    ({"tasks": ["vt", "cwe", "vt"]}, "RulerEval.tasks holds vt more than once"),
    ({"tasks": ["niah_singel_1"]}, "unknown RULER task 'niah_singel_1'.*qa_2; did you mean niah_single_1"),
    ({"tasks": [None]}, "unknown RULER task None"),
    ({"lengths": []}, "RulerEval.lengths is empty"),
    ({"lengths": 4096}, "RulerEval.lengths is 4096, but must be a list"),
    ({"lengths": [0]}, "RulerEval.lengths is 0"),
    ({"lengths": [-4096]}, "RulerEval.lengths is -4096"),
    ({"lengths": [4096.5]}, "RulerEval.lengths is 4096.5"),
    ({"lengths": [4096, 4096]}, "RulerEval.lengths holds 4096 more than once"),
    ({"budgets": []}, "RulerEval.budgets is empty"),
    ({"budgets": 0.5}, "RulerEval.budgets is 0.5, but must be a list"),
    ({"budgets": [1.0, 0.0]}, "RulerEval.budgets is 0.0, but must be a number above 0, at most 1"),
    ({"budgets": [2]}, "RulerEval.budgets is 2"),
    ({"budgets": [float("nan")]}, "RulerEval.budgets is nan"),
    ({"budgets": [0.5, 0.5]}, "RulerEval.budgets holds 0.5 more than once"),
    ({"budgets": [0.5, 0.50000001]}, "budgets holds r0.5 more than once"),
    ({"num_samples": 0}, "RulerEval.num_samples is 0"),
    ({"every_n_steps": -1}, "RulerEval.every_n_steps is -1"),
    ({"generation": "sometimes"}, "RulerEval.generation is 'sometimes'"),
    ({"max_seconds": 0}, "RulerEval.max_seconds is 0"),
    ({"max_seconds": float("inf")}, "RulerEval.max_seconds is inf"),
    ({"lag_divisor": 0}, "RulerEval.lag_divisor is 0"),
    ({"sink_size": -1}, "RulerEval.sink_size is -1"),
    ({"batch_size": 0}, "RulerEval.batch_size is 0"),
    ({"prefill_chunk_size": 0}, "RulerEval.prefill_chunk_size is 0"),
    ({"template": "alpaca"}, "RulerEval.template is 'alpaca', but must be one of 'base', 'chatml'"),
    ({"seed": -1}, "RulerEval.seed is -1"),
    # The lag has no token, nothing of it is kept, and no token is ever dropped.
    ({"lengths": [31]}, "r0.5 at length 31 with lag_divisor 32.*the lag has no token"),
    ({"lengths": [64], "budgets": [1.0, 0.25]}, "r0.25 at length 64.*nothing is kept of a lag of 2 tokens"),
    ({"lengths": [640], "lag_divisor": 2}, "r0.5 at length 640 with lag_divisor 2 .*nothing is ever dropped"),
    ({"lengths": [640], "sink_size": 600}, "sink_size 600: nothing is ever dropped"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_the_callback_refuses_when_constructed(arguments, message):
    with pytest.raises(InputError, match=message):
        RulerEval(**arguments)


def test_the_dense_cache_takes_any_length_and_the_others_the_least_that_compresses():
    RulerEval(lengths=[31], budgets=[1.0])
    # Chunk 2 begins at 12 + 2 * 12 = 36: the token there is the first that does not see all of chunk 0.
    RulerEval(lengths=[37], budgets=[0.5], lag_divisor=3, sink_size=12)
    with pytest.raises(InputError, match="nothing is ever dropped"):
        RulerEval(lengths=[36], budgets=[0.5], lag_divisor=3, sink_size=12)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("squad", [{"question": "?", "answer": "a", "context": [["t", ["s"]]]}]),  # HotpotQA's
        ("squad", {"data": []}),
        ("essays", {"essay": "Another key."}),
        ("essays", None),
    ],
)
def test_the_callback_reads_its_files_when_constructed(tmp_path, name, content):
    path = tmp_path / f"{name}.json"
    if content is not None:
        path.write_text(json.dumps(content))
    task = {"squad": "qa_1", "essays": "niah_single_2"}[name]
    with pytest.raises(InputError, match=rf"RULER's {name} file .*{name}\.json"):
        RulerEval(tasks=[task], sources=Sources(**{name: path}))
    with pytest.raises(InputError, match=rf"RULER's {name} file"):  # the light choice takes a task from it
        RulerEval(sources=Sources(**{name: path}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budgets": []}, "budgets, with modes, is empty"),
        ({"budgets": [0]}, "RulerEvaluator.budgets is 0"),
        ({"budgets": "0.5"}, "RulerEvaluator.budgets is '0.5', but must be a list"),
        ({"budgets": [0.5], "modes": {"r0.5": None}}, "holds r0.5 more than once"),
        ({"batch_size": 0}, "RulerEvaluator.batch_size is 0"),
        ({"lag_divisor": 641}, "the lag has no token"),
        ({"samples": {("vt", 640): []}}, "none of vt at length 640"),
    ],
)
def test_the_evaluator_refuses_in_python(tokenizer, arguments, message):
    with pytest.raises(InputError, match=message):
        RulerEvaluator(tokenizer, **{"samples": {("vt", 640): [{}]}, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "make_samples.num_samples is 0"),
        ({"num_samples": -3}, "make_samples.num_samples is -3"),
        ({"max_length": 0}, "make_samples.max_length is 0"),
        ({"max_length": "640"}, "make_samples.max_length is '640'"),
        ({"seed": -1}, "make_samples.seed is -1"),
        ({"template": "alpaca"}, "make_samples.template is 'alpaca'"),
    ],
)
def test_make_samples_refuses_in_python(tokenizer, arguments, message):
    with pytest.raises(InputError, match=message):
        make_samples(**{"task": "vt", "tokenizer": tokenizer, "max_length": 640, "num_samples": 1, **arguments})


SHARED = [
    (["--num_samples", "0"], "num_samples"),
    (["--num_samples", "2.5"], "num_samples"),
    (["--lengths", "0"], "lengths"),
    (["--lengths", "640", "640"], "--lengths holds 640 more than once"),
    (["--seed", "-1"], "seed"),
    (["--tasks", "vt", "vt"], "--tasks holds vt more than once"),
    (["--tasks", "vtt"], "unknown RULER task 'vtt'"),
    (["--template", "alpaca"], "template"),
]
OF_EVALUATION = [
    (["--budgets"], "--budgets is empty"),
    (["--budgets", "0"], "budgets"),
    (["--budgets", "1.5"], "budgets"),
    (["--budgets", "0.5", "0.5"], "budgets holds r0.5 more than once"),
    (["--lag_divisor", "0"], "lag_divisor"),
    (["--sink_size", "-1"], "sink_size"),
    (["--batch_size", "0"], "batch_size"),
    (["--prefill_chunk_size", "-5"], "prefill_chunk_size"),
    (["--devices", "0"], "devices"),
    (["--precision", "float16"], "precision"),
    (["--generation", "false", "--teacher_forcing", "false"], "leave nothing to measure"),
    (["--lengths", "31"], "the lag has no token"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [("make_ruler", *case) for case in [*SHARED, (["--workers", "0"], "workers")]]
    + [("eval_ruler", *case) for case in [*SHARED, *OF_EVALUATION]],
)
def test_the_commands_refuse_before_they_read_a_model_or_tokenizer(script, arguments, message, tmp_path, capsys):
    needed = {"make_ruler": "--tokenizer", "eval_ruler": "--model"}[script]
    main = runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"]
    # The model does not exist: reading it first would give another error.
    given = [needed, str(tmp_path / "nowhere"), "--output", str(tmp_path / "out"), "--skip_missing", *arguments]
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "nowhere" not in err
    assert not (tmp_path / "out").exists()
