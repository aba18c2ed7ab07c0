"""Samples of RULER's own scripts: the layouts and fields of their files, and what `lrsa eval` refuses of them."""

import json
import runpy
from pathlib import Path

import pytest

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.official import OfficialSamples
from lrsa_lightning.ruler.records import read_records
from tests.conftest import make_model, write_jsonl
from tests.ruler.conftest import count_tokens

SCRIPTS = Path(__file__).parents[2] / "scripts"
NEW_TOKENS = {"niah_single_1": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32}
OUTPUTS = {
    "niah_single_1": ["1234567"],
    "niah_multiquery": ["1234567", "7654321"],
    "vt": ["AAAAA", "BBBBB"],
    "cwe": ["river", "market"],
    "fwe": ["abcdef", "ghijkl", "mnopqr"],
    "qa_1": ["Paris", "the city of Paris"],
}
# Written by prepare.py since July 2026, but for the text.
ROW = {"index": 7, "input": "One of 1234567.\nWhat is it?", "outputs": ["1234567"], "length": 150}
ROW |= {"length_w_model_temp": 150, "answer_prefix": " It is", "token_position_answer": 7}


def write(folder: Path, *paths: str, rows=(ROW, ROW | {"input": "No. 7654321.\nWhat is it?", "outputs": ["7654321"]})):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / path, list(rows))
    return folder


@pytest.mark.parametrize(
    ("path", "lengths"),
    [("vt/validation.jsonl", [512]), ("vt.jsonl", [512]), ("512/data/vt/validation.jsonl", None)],
)
def test_every_layout_is_read(tokenizer, tmp_path, path, lengths):
    samples = OfficialSamples(write(tmp_path, path), lengths=lengths)
    assert samples.lengths == [512]
    assert samples.hashes().keys() == {"512/vt"}
    ((cell, rows),) = samples.read(tokenizer, 500).items()
    assert cell == ("vt", 512)
    assert [row["id"] for row in rows] == ["vt-512-official-0", "vt-512-official-1"]  # RULER's index repeats
    assert [row["outputs"] for row in rows] == [["1234567"], ["7654321"]]


def test_a_row_is_the_prompt_and_the_outputs_of_the_file(tokenizer, tmp_path):
    write(tmp_path, "512/data/niah_single_1/validation.jsonl")
    ((_, rows),) = OfficialSamples(tmp_path).read(tokenizer, 1).items()
    assert rows == [
        {
            "id": "niah_single_1-512-official-0",
            "task": "niah_single_1",
            "max_length": 512,
            "input": ROW["input"],
            "answer_prefix": " It is",
            "outputs": ["1234567"],
            "answer": " 1234567",
            "depths": [],
            "length": count_tokens(tokenizer, ROW["input"] + " It is") + 128,
        }
    ]


def test_files_before_may_2025_hold_the_prefix_in_the_input(tokenizer, tmp_path):
    row = {key: ROW[key] for key in ("index", "input", "outputs", "length")}
    write(tmp_path, "vt.jsonl", rows=[row | {"input": ROW["input"] + " It is", "truncation": -1}])
    ((_, rows),) = OfficialSamples(tmp_path, lengths=[512]).read(tokenizer, 1).items()
    assert (rows[0]["input"], rows[0]["answer_prefix"]) == (ROW["input"] + " It is", "")


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("niah_single_1", " 1234567"),
        ("niah_multiquery", " 1234567, and 7654321"),
        ("vt", " AAAAA BBBBB"),
        ("cwe", " 1. river 2. market"),
        ("fwe", " abcdef, ghijkl, and mnopqr"),
        ("qa_1", " Paris"),
    ],
)
def test_the_reference_has_the_style_of_the_task(tokenizer, tmp_path, task, answer):
    write(tmp_path, f"{task}.jsonl", rows=[ROW | {"outputs": OUTPUTS[task]}])
    ((_, rows),) = OfficialSamples(tmp_path, lengths=[512]).read(tokenizer, 1).items()
    assert rows[0]["answer"] == answer


def test_tasks_and_lengths_select(tmp_path):
    paths = [f"{length}/data/{task}/validation.jsonl" for length in (1024, 512) for task in ("vt", "fwe", "qa_1")]
    write(tmp_path, *paths)
    assert [*OfficialSamples(tmp_path).paths] == [
        *[(task, 512) for task in ("vt", "fwe", "qa_1")],
        *[(task, 1024) for task in ("vt", "fwe", "qa_1")],
    ]
    assert [*OfficialSamples(tmp_path, ["qa_1", "vt"]).paths] == [
        *[("qa_1", length) for length in (512, 1024)],
        *[("vt", length) for length in (512, 1024)],
    ]
    assert [*OfficialSamples(tmp_path, ["qa_1", "vt"], [1024]).paths] == [("qa_1", 1024), ("vt", 1024)]
    assert [*OfficialSamples(tmp_path, None, [1024]).paths] == [(task, 1024) for task in ("vt", "fwe", "qa_1")]
    for chosen, what in ((["vt", "cwe"], None), "cwe"), ((["vt", "cwe"], [512]), "cwe at length 512"):
        with pytest.raises(InputError, match=f"has no file of {what}: choose others with --tasks"):
            OfficialSamples(tmp_path, *chosen)
        assert {task for task, _ in OfficialSamples(tmp_path, *chosen, skip_missing=True).paths} == {"vt"}
    with pytest.raises(InputError, match="has no file of any task at length 2048"):
        OfficialSamples(tmp_path, None, [512, 2048])
    with pytest.raises(InputError, match="has no file of any chosen task and length"):
        OfficialSamples(tmp_path, ["cwe"], skip_missing=True)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], {}, r"holds no samples, expected <task>/validation.jsonl, .* or a folder of `lrsa ruler`"),
        (["niah_singel_1/validation.jsonl"], {"lengths": [512]}, r"niah_singel_1.*did you mean niah_single_1"),
        (["512/data/vtt/validation.jsonl"], {}, r"vtt/validation.jsonl: unknown RULER task 'vtt'"),
        (["vt/validation.jsonl"], {}, r"vt/validation.jsonl does not say its length: give --lengths"),
        (["vt/validation.jsonl"], {"lengths": [512, 1024]}, "does not say its length"),
        (["vt/validation.jsonl", "vt.jsonl"], {"lengths": [512]}, "both hold vt at length 512"),
        (["vt.jsonl"], {"lengths": [512], "tasks": ["vtt"]}, "--tasks: unknown RULER task 'vtt'"),
        (["vt.jsonl"], {"lengths": [512, 512]}, "--lengths holds 512 more than once"),
    ],
)
def test_a_folder_without_the_samples_is_refused(tmp_path, paths, options, message):
    with pytest.raises(InputError, match=message):
        OfficialSamples(write(tmp_path, *paths), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": None}, "line 2: index is None, expected a int"),
        ({"input": ["a"]}, r"line 2: input is \['a'\], expected a str"),
        ({"outputs": "1234567"}, "line 2: outputs is '1234567', expected a list"),
        ({"outputs": []}, r"line 2: outputs are \[\]"),
        ({"length": "150"}, "line 2: length is '150'"),
        ({"answer_prefix": None}, "line 2: answer_prefix is None"),
        ({"input": "word " * 300}, r"line 2: \d+ tokens with this tokenizer, 30 of them new, are more than length 512"),
    ],
)
def test_a_malformed_or_too_long_row_is_named(tokenizer, tmp_path, change, message):
    write(tmp_path, "vt.jsonl", rows=[ROW, ROW | change])
    samples = OfficialSamples(tmp_path, lengths=[512])
    with pytest.raises(InputError, match=rf"vt\.jsonl, {message}"):
        samples.read(tokenizer, 2)
    assert len(samples.read(tokenizer, 1)["vt", 512]) == 1  # the first of each file


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ('{"index": 1, "inp', "line 1: expected a JSON obj")])
def test_an_empty_or_incomplete_file_is_refused(tokenizer, tmp_path, text, message):
    (tmp_path / "vt.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        OfficialSamples(tmp_path, lengths=[512]).read(tokenizer, 1)


@pytest.fixture
def evaluate(tokenizer, tmp_path, monkeypatch, capsys):
    """eval_ruler.py on a tiny model: (words) -> its output, or its error."""
    make_model(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(SCRIPTS / "eval_ruler.py"))["main"]

    def call(*words: str) -> str:
        try:
            main(["--model", "model", "--output", "eval", "--budgets", "1", "0.5", *words])
        except SystemExit:
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error")]
            return line
        return capsys.readouterr().out

    return call


def test_the_command_scores_them_as_it_scores_our_own(evaluate, tmp_path):
    write(tmp_path, "ruler/512/data/vt/validation.jsonl", "ruler/640/data/qa_1/validation.jsonl")
    out = evaluate("--samples", "ruler", "--lengths", "512")
    assert "vt" in out
    evaluate("--samples", "ruler", "--lengths", "640")  # joins what is there
    records = read_records(tmp_path / "eval" / "results.jsonl")
    assert [(record.id, record.budget) for record in records] == [
        (f"{task}-{length}-official-{number}", budget)
        for task, length in (("vt", 512), ("qa_1", 640))
        for budget in ("r1", "r0.5")
        for number in (0, 1)
    ]
    assert all(record.prediction is not None and record.nll > 0 for record in records)
    assert json.loads((tmp_path / "eval" / "settings.json").read_text())["sources"].keys() == {"512/vt", "640/qa_1"}


def test_the_command_refuses_other_files_in_a_folder_of_results(evaluate, tmp_path):
    samples = ["--samples", "ruler", "--generation", "false"]
    write(tmp_path, "ruler/512/data/vt/validation.jsonl")
    evaluate(*samples)
    write(tmp_path, "ruler/512/data/vt/validation.jsonl", rows=[ROW])
    assert "eval holds results of other settings (512/vt differ)" in evaluate(*samples)
    assert "other settings (samples differ)" in evaluate(
        *("--tasks", "niah_single_1", "--lengths", "640", "--num_samples", "1", "--generation", "false")
    )


def test_the_command_refuses_lengths_beyond_the_model_or_without_a_budget(evaluate, tmp_path):
    write(tmp_path, "long/4096/data/vt/validation.jsonl", "short/31/data/vt/validation.jsonl")
    assert "--lengths 4096 is beyond the model's 1024 positions" in evaluate("--samples", "long")
    assert "r0.5 at length 31 with lag_divisor 32" in evaluate("--samples", "short")
    assert "--samples nowhere holds no samples" in evaluate("--samples", "nowhere")


@pytest.mark.parametrize("script", ["eval_ruler", "make_ruler"])
def test_the_option_official_compat_is_refused_with_the_way_out(script, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"](
            [{"eval_ruler": "--model", "make_ruler": "--tokenizer"}[script], "nowhere", "--official_compat"]
        )
    assert "official_compat is gone: make samples with RULER's own prepare.py and score them" in capsys.readouterr().err
