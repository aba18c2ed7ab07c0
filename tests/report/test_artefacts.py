"""What a report writes: tables, pictures, and a page that needs nothing else."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

from lrsa_lightning.cli import main
from lrsa_lightning.report import read_runs, write_report
from lrsa_lightning.ruler.records import Record
from tests.report.conftest import records

QUESTIONS = {"qa_1": [1.0, 0.0], "qa_2": [0.0, 0.0], "vt": [1.0, 1.0]}
DATA = {"seed_everything": 42, "data": {"seq_len": 4096, "num_workers": 1}, "trainer": {"max_steps": 3}}


def needles():
    place = {"depths": [0.5], "hits": [True]}
    return [Record("niah_single_1-4096-42-0", "niah_single_1", 4096, "r1", 0.9, ["x"], score=1.0, **place)]


@pytest.fixture
def report(make_run, tmp_path):
    """Of a run, of another that has less, and of an evaluation folder."""
    scored = [*records(QUESTIONS), *records(QUESTIONS, budget="r0.5"), *needles()]
    folders = [
        make_run("lrsa", {3: scored}, [3.0, 2.0, 1.0], DATA),
        make_run(
            "vanilla", {2: records({"vt": [0.0], "qa_1": [1.0, 1.0]})}, [3.0, 2.5, 2.0], DATA | {"seed_everything": 1}
        ),
        make_run("<base>", records(QUESTIONS)),
    ]
    return write_report(read_runs(list(map(str, folders))), tmp_path / "out")


def test_the_page_holds_every_picture_and_needs_nothing_else(report):
    page = report.files[-1].read_text(encoding="utf-8")
    pictures = [path for path in report.files if path.suffix == ".png"]
    names = ["fig2_loss.png", "fig3_qa.png", "fig4_mean.png", "depths_lrsa.png"]
    assert [path.name for path in pictures] == names
    sources = re.findall(r'src="([^"]*)"', page)
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(s.removeprefix(prefix)) for s in sources] == [path.read_bytes() for path in pictures]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    without_data = re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"https?:|<link|<script|@import|url\(|href=", without_data)
    assert "prefers-color-scheme: dark" in page


def test_the_page_has_the_tables_and_escapes_names(report):
    page = report.files[-1].read_text(encoding="utf-8")
    assert "Subset mean over 2 tasks (vt, qa_1)" in page
    assert "<b>100.0</b>" not in page.split("What was compared")[1]
    assert "&lt;base&gt;" in page
    assert "<base>" not in page
    assert page.count("<table>") == 4


def test_the_notes_say_what_is_missing_or_differs(report):
    assert report.notes == [
        "<base> has no training loss: it is not in the figure of losses.",
        "vanilla was scored at step 2, but trained for 3 steps.",
        "Not in the means of 4K, because not every run was scored on them under each of its budgets: niah_single_1, "
        "qa_2.",
        "Not the same samples in all rows (their number): 4K: vt (1 to 2).",
        "The figure of question answering does not have both tasks everywhere, but 1 task (qa_1).",
        "The runs did not train on the same data in the same order (lrsa / vanilla): seed_everything: 42 / 1.",
    ]


def test_the_notes_say_which_columns_and_cells_are_not_there(make_run, tmp_path):
    everywhere = {"vt": [1.0], "qa_1": [1.0], "qa_2": [0.0]}
    a = [*records(everywhere), *records(everywhere, 8192), *records({"cwe": [1.0]}, 16384)]
    b = [*records(everywhere), *records({"vt": [1.0]}, 8192), *records(everywhere, budget="r0.5")]
    c = [*records({"vt": [1.0]}), *records({"vt": [1.0]}, 8192), *records({"fwe": [1.0]}, 16384)]
    folders = [make_run(name, own, [1.0], DATA) for name, own in zip("abc", ({1: a}, {1: b}, {1: c}), strict=True)]
    assert write_report(read_runs(list(map(str, folders))), tmp_path / "out").notes == [
        "Not in the means of 4K, 8K, because not every run was scored on them under each of its budgets: qa_1, qa_2.",
        "Not in the means of 16K, because not every run was scored on them under each of its budgets: cwe, fwe. There "
        "is no column for 16K.",
        "b was not scored at 8K (2x), so it has no average.",
        "The figure of question answering lacks c: no QA task was scored.",
    ]


def test_the_page_says_what_was_compared(make_run, tmp_path):
    attention = {"class_path": "lrsa_lightning.attention.LRSA", "init_args": {"lag_size": 64}}
    own = [*records({"vt": [1.0, 0.0]}), *records({"qa_1": [1.0]}, 8192, budget="r0.5")]
    folder = make_run("x", {3: own}, [3.0], DATA | {"model": {"attention": attention}})
    speeds = [1.0] * 10 + [1000.0, 2500.0, 1000.0]  # the first ten steps are slower
    rows = [{"step": i, "throughput/tokens_per_second": z} for i, z in enumerate(speeds)]
    rows += [{"step": 1, "throughput/peak_memory_gib": z} for z in (3.25, 4.5)]
    rows += [{"step": i, "train/loss": 1.0 + i} for i in range(1, 200)] + [{"step": 9, "val/loss": z} for z in (2, 1.5)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    page = write_report(read_runs([str(folder)]), tmp_path / "out").files[-1].read_text(encoding="utf-8")
    row = re.search(r"What was compared.*?<tbody>\s*<tr>(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == [
        "x",
        str(folder),
        "3",
        "LRSA(lag_size=64)",
        "2 tasks (vt, qa_1)",
        "4K, 8K",
        "1x, 2x",
        "1 to 2",
    ]
    row = re.search(r"Speed, memory and loss.*?<tbody>\s*<tr>(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["x", "1,000", "4.5", "199.5000", "1.5000"]


def test_runs_that_share_no_task_are_reported_task_by_task(make_run, tmp_path):
    own = {"a": records({"vt": [1.0]}), "b": records({"cwe": [1.0]})}
    folders = [make_run(name, {1: found}, [1.0], {"model": {"lr": name}, **DATA}) for name, found in own.items()]
    report = write_report(read_runs([*map(str, folders)]), tmp_path / "out")
    assert [path.name for path in report.files] == ["table_tasks.csv", "fig2_loss.png", "report.html"]
    said = "No task at any length was scored by all runs that have scores there, so there are no means: a has vt/4K; b"
    assert any(note.startswith(said) for note in report.notes)


def test_runs_of_different_lengths_share_a_table(make_run, tmp_path):
    own = {"a": records({"vt": [1.0]}, 512), "b": records({"vt": [1.0]}, 1024)}
    folders = [make_run(name, {1: found}, [1.0], {"model": {"lr": name}, **DATA}) for name, found in own.items()]
    report = write_report(read_runs([*map(str, folders)]), tmp_path / "out")
    assert report.markdown.splitlines()[-2:] == ["| a | 1x | 100.0 | – | – |", "| b | 1x | – | 100.0 | – |"]
    assert "a was not scored at 1K (1x), so it has no average." in report.notes


def test_a_run_that_shares_no_task_at_its_length_is_said(make_run, tmp_path):
    own = {"a": records({"vt": [1.0]}), "b": records({"cwe": [1.0]}) + records({"vt": [1.0]}, 8192)}
    folders = [make_run(name, {1: found}, [1.0], {"model": {"lr": name}, **DATA}) for name, found in own.items()]
    report = write_report(read_runs([*map(str, folders)]), tmp_path / "out")
    assert "a shares no task with the runs at its lengths (vt/4K): it is not in the means." in report.notes
    assert report.markdown.splitlines()[-1] == "| b | 1x | 100.0 | 100.0 |"


def test_titles_are_the_reports_own_with_the_papers_number(report):
    page = report.files[-1].read_text(encoding="utf-8").replace("&#39;", "'")
    assert "<h1>Score by task, length and cache budget</h1>" in page
    assert "<h2>Score by length and cache budget (the paper's Table 1)</h2>" in page
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert [re.search(r"\(the paper's Figure (\d)\)", caption)[1] for caption in captions[:3]] == ["2", "3", "4"]


def test_a_later_report_leaves_nothing_of_an_earlier_one(report, make_run, tmp_path):
    later = write_report(read_runs([str(make_run("only", losses=[1.0, float("nan")]))]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fig2_loss.png", "report.html"]
    assert later.markdown == ""
    assert "No run has RULER scores: there are no tables and figures of them." in later.notes


@pytest.mark.parametrize(("digests", "is_said"), [(["1", "2"], True), (["1", "1"], False), (["1", None], False)])
def test_another_content_under_the_same_ids_is_said(make_run, tmp_path, digests, is_said):
    folders = [make_run(name, records({"vt": [1.0]}, digest=own)) for name, own in zip("ab", digests, strict=True)]
    notes = write_report(read_runs(list(map(str, folders))), tmp_path / "out").notes
    assert ("Not the same samples in all rows (their number): 4K: vt (1)." in notes) == is_said


def test_budgets_that_are_other_caches_are_said(make_run, tmp_path):
    folders = [make_run(name, records({"vt": [1.0]}, budget=budget)) for name, budget in (("a", "r0.5"), ("b", "r0.5"))]
    dense = make_run("dense", records({"vt": [1.0]}))
    for folder, lag_divisor in ((folders[0], 32), (folders[1], 8), (dense, 16)):
        (folder / "settings.json").write_text(json.dumps({"lag_divisor": lag_divisor, "sink_size": 16}))
    notes = write_report(read_runs([*map(str, folders), str(dense)]), tmp_path / "out").notes
    assert "The budgets are not the same caches (a / b): lag_divisor: 32 / 8." in notes


def test_losses_that_are_no_numbers_and_unknown_data_are_said(make_run, tmp_path):
    a, b = make_run("a", losses=[1.0, float("nan"), float("inf")], config=DATA), make_run("b", losses=[1.0, 1.0])
    notes = write_report(read_runs([str(a), str(b)]), tmp_path / "out").notes
    assert "2 of the 3 training losses of a are no finite numbers." in notes
    assert "No configuration says which data b trained on: the data may not be the same." in notes


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_name_of_a_folder_is_reported(make_run, tmp_path):
    names = ["模型", "é ü", "a\nb", "$x_{$", "<b>|", "x" * 200, os.fsdecode(b"\xff\xfe")]
    own = {3: [*records({"vt": [1.0], "qa_1": [0.0]}), *needles()]}
    folders = [make_run(name, own, [3.0, 2.0], DATA) for name in names]
    report = write_report(read_runs(list(map(str, folders))), tmp_path / "out")
    assert all(path.exists() for path in report.files)
    assert sum(path.name.startswith("depths_") for path in report.files) == len(names)
    assert len({line.count("|") - line.count("\\|") for line in report.markdown.splitlines()[2:]}) == 1
    page = report.files[-1].read_text(encoding="utf-8")
    assert "模型" in page
    assert "a b" in page


def test_without_question_answering_there_is_no_figure_of_it(make_run, tmp_path):
    a, b = make_run("a", records({"vt": [1.0], "qa_1": [1.0]})), make_run("b", records({"vt": [1.0], "qa_2": [1.0]}))
    report = write_report(read_runs([str(a), str(b)]), tmp_path / "out")
    assert "fig3_qa.png" not in [path.name for path in report.files]
    assert "No figure of question answering: the runs share no such task (qa_1, qa_2)." in report.notes


def test_the_command_prints_table_notes_and_files(make_run, tmp_path, capsys):
    main(["report", f"_$x$={make_run('a', records(QUESTIONS))}", "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert out.startswith("Subset mean over 3 tasks (vt, qa_1, qa_2)\n\n| Model | Budget | 4K | Avg |\n")
    assert "| _$x$ | 1x | 50.0 | 50.0 |" in out
    assert "note: _$x$ has no training loss" in out
    assert out.rstrip().endswith(str(tmp_path / "out" / "report.html"))


def test_lrsa_does_not_import_what_only_reports_need():
    code = "import sys, lrsa_lightning.cli; sys.exit(bool({'pandas', 'lrsa_lightning.report'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["a/results.jsonl"],
        ["empty"],
        ["a", "--output", "a/results.jsonl"],
        ["a", "a"],
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(make_run, tmp_path, monkeypatch, capsys, arguments):
    make_run("a", records({"vt": [1.0]}))
    make_run("b", records({"cwe": [1.0]}))
    make_run("empty")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["report", *arguments])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lrsa: error: ")
    assert not (tmp_path / "report").exists()
