"""The subcommands of `lrsa` that need no training: each explains itself without the hardware or the data it needs."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from shutil import which

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.ruler.records import read_records
from tests import warm
from tests.conftest import make_model, write_jsonl
from tests.runs import refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
_PATIENCE = 300  # seconds of a command, on a machine that has much else to do
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_its_help(name, capsys):
    with suppress(SystemExit):
        main([name, "--help"])
    usage = "lm-eval" if name == "lm_eval" else f"lrsa {name}"
    assert f"usage: {usage}" in capsys.readouterr().out


def test_fit_shows_model_and_data_before_the_trainer(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage == "usage: lrsa fit [--config FILE ...] [--KEY VALUE ...]"
    places = [next(n for n, line in enumerate(lines) if f"--{key}" in line) for key in ("model", "data", "trainer")]
    assert places == sorted(places)


@pytest.mark.skipif(which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_files(capsys, tmp_path):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = tmp_path / "lrsa"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "job.yaml").touch()

    def complete(*words: str) -> list[str]:
        line = " ".join(["lrsa", *map(shlex.quote, words)])
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_lrsa; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout.split()

    assert complete("") == list(COMMANDS)
    assert complete("swe") == ["sweep"]
    assert complete("fit", "--model.atten") == ["--model.attention.help", "--model.attention"]
    assert "--data.seq_len" in complete("plan", "--data.s")
    assert {"--device", "--devices"} == {*complete("plan", "--dev")}
    assert complete("fit", "--ckpt") == ["--ckpt_path"]
    assert complete("fit", "--config", "jo") == ["job.yaml"]
    assert complete("export", "x", "--dtype", "") == ["float32", "bfloat16", "float16"]
    assert complete("eval", "--check") == ["--checkpoint"]


def test_completion_without_shtab_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    assert capsys.readouterr().err == "lrsa: error: the package shtab makes the script: pip install shtab\n"


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_a_command_or_shows_its_help(script, monkeypatch, capsys):
    if (found := re.match(r'"""`lrsa (\w+)` as a script."""', script.read_text())) is not None:
        assert runpy.run_path(str(script))["main"] is COMMANDS[found[1]].load()
        return
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "usage" in capsys.readouterr().out.lower()


@pytest.fixture
def arguments(train_file, tokenizer_dir, tmp_path):
    options = {
        "--data.train_files": train_file,
        "--data.tokenizer": tokenizer_dir,
        "--data.cache_dir": tmp_path / "cache",
        "--data.seq_len": 300,
        "--data.global_batch_size": 2,
    }
    return [str(x) for pair in options.items() for x in pair]


def run(name, *arguments) -> warm.Ended:
    return warm.Run([name, *map(str, arguments)]).wait(_PATIENCE)


def test_inspect_shows_lengths_label_tokens_and_a_sample(arguments, tmp_path):
    result = run("inspect", *arguments, "--output", "lengths.png", "--sample", "3")
    assert result.status == 0, result.err
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "24 read, 24 kept, 0 left out, 0 shortened, in 24 rows\n" in result.out
    assert "languages       Latin script 100.0%\ntemplates       chatml 100.0%\n" in result.out
    assert re.search(r"most \d+; 0 of 24 samples are longer than data\.seq_len 300\n", result.out)
    assert "Document 1:" in result.out
    turn = "Which colour has house 3?<|im_end|>\n<|im_start|>assistant\n>>>Colour 3.<|im_end|><<<\n"
    assert result.out.endswith(turn)
    without = run("inspect", *arguments, "--data.val_files", "null", "--sample", "3")
    assert without.out.strip() == result.out.strip().replace("lengths.png", "data_lengths.png")
    wrong = run("inspect", *arguments, "--sample", "99")
    assert "--sample is 99, but must be from 0 to 23" in wrong.err


def test_a_run_finds_what_prepare_prepared(arguments, tmp_path):
    result = run("prepare", *arguments)
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    assert f"train: 24 samples in {folder}" in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.jsonl"]
    missing = run("prepare", *arguments, "--data.train_files", "nowhere.jsonl")
    assert missing.status == 2
    assert missing.err.splitlines()[-1].startswith("lrsa: error: data file nowhere.jsonl does not exist")


@pytest.fixture
def model_dir(tokenizer, tmp_path):
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


RULER = ["--tasks", "niah_single_1", "--lengths", "640", "--num_samples", "3"]


def test_ruler_writes_the_official_format_and_eval_reads_it(model_dir, tmp_path):
    made = run("ruler", "--tokenizer", model_dir, "--output", "samples", *RULER)
    assert made.out.split() == ["samples/640/niah_single_1/validation.jsonl"], made.err
    arguments = ["--model", model_dir, "--samples", "samples", "--output", "eval", "--budgets", "1", "0.5", *RULER]
    mode = SCRIPTS.parent / "configs" / "attention" / "lrsa_r25.yaml"
    arguments += ["--attention", mode, "--batch_size", "1"]
    result = run("eval", *arguments)
    assert result.status == 0, result.err
    assert result.out.splitlines()[0].split() == ["task", "length", "r1", "r0.5", "lrsa", "samples"]
    path = tmp_path / "eval" / "results.jsonl"
    records = read_records(path)
    assert [record.budget for record in records] == ["r1"] * 3 + ["r0.5"] * 3 + ["lrsa"] * 3
    # The shortest samples come first; the file has all in their own order.
    assert [record.id for record in records] == [f"niah_single_1-640-42-{i}" for i in range(3)] * 3
    # As a kill within a line leaves it: what is lacking is scored again, and only that.
    whole = path.read_text()
    path.write_text(whole[: whole.index("r0.5") + 100])
    assert run("eval", *arguments).status == 0
    assert read_records(path) == records
    other = run("eval", *arguments, "--sink_size", "4")
    assert other.err.splitlines()[-1].startswith("lrsa: error: eval holds results of other settings (sink_size")


def test_eval_leaves_out_what_a_length_has_no_room_for(model_dir, tmp_path):
    arguments = ["--model", model_dir, "--output", "eval", "--tasks", "vt", "niah_single_1", "--lengths", "640"]
    arguments += ["--num_samples", "1", "--budgets", "1", "--generation", "false"]
    assert "RULER vt at length 640: needs" in run("eval", *arguments).err.splitlines()[-1]
    result = run("eval", *arguments, "--skip_missing")
    assert result.status == 0, result.err
    assert re.search("RULER vt at length 640: needs .*; left out", result.err)
    assert {record.task for record in read_records(tmp_path / "eval" / "results.jsonl")} == {"niah_single_1"}


def test_ruler_leaves_out_what_a_length_has_no_room_for(model_dir, capsys):
    arguments = ["--tokenizer", model_dir, "--tasks", "vt", "niah_single_1", "--lengths", "640", "--num_samples", "1"]
    # In this process: one that multiprocessing has made joins a pool's processes before the pool has ended them.
    said = refusal(capsys, ["ruler", *map(str, arguments)])
    assert "RULER vt at length 640: needs" in said.splitlines()[-1]
    result = run("ruler", *arguments, "--skip_missing")
    assert result.out.splitlines() == ["ruler/640/niah_single_1/validation.jsonl"], result.err
    assert re.search("RULER vt at length 640: needs .*; left out", result.err)


def test_eval_scores_predictions_without_a_model(tmp_path):
    rows = [{"pred": "It is 1234567.", "outputs": ["1234567"]}, {"pred": "\u2028no", "outputs": ["7654321"]}]
    write_jsonl(tmp_path / "niah_single_1.jsonl", rows)
    result = run("eval", "--predictions", "niah_single_1.jsonl")
    assert result.out.split() == ["niah_single_1", "50.0"], result.err
    (tmp_path / "vt.jsonl").write_text(json.dumps(rows[0]) + '\n{"pred": 1}\n')
    wrong = run("eval", "--predictions", "vt.jsonl")
    assert wrong.err.splitlines()[-1].startswith("lrsa: error: vt.jsonl, line 2: expected an object with pred and")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--checkpoint", "nowhere.ckpt", "--skip_missing"],
            "nowhere.ckpt does not exist: give a checkpoint of runs/<name>/checkpoints/",
        ),
        ([], "give exactly one of --model and --checkpoint"),
        (["--model", "x", "--tasks", "vtt"], "unknown RULER task 'vtt', expected one of niah_single_1,"),
        (["--model", "x", "--tasks", "qa_1"], "RULER qa_1 needs the file squad: give squad.json, from https://"),
    ],
)
def test_eval_refuses_in_a_line(tmp_path, arguments, message):
    result = run("eval", *arguments)
    assert result.status == 2
    assert message in result.err.splitlines()[-1]
