"""The progress of a run: a bar in a terminal, plain lines elsewhere."""

import io
import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lrsa_lightning.callbacks import progress
from lrsa_lightning.callbacks.progress import StepProgress
from lrsa_lightning.cli import main
from lrsa_lightning.commands import run_summary
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.step_log import StepRow
from tests.runs import callback, command, metrics


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def run_steps(callback: StepProgress, clock, first: int = 0, last: int = 8, every: int = 2) -> None:
    """Steps of ten seconds and 500 tokens each, two micro-batches a step; an evaluation of an hour goes before.

    Metrics are read at every second step.
    """
    trainer, rows = SimpleNamespace(global_step=first, estimated_stepping_batches=10, should_stop=False), []
    module = SimpleNamespace(seen_tokens=(500 * first, 5))
    callback.on_train_start(trainer, module)
    clock.now += 3600
    for step in range(first, last):
        for micro in range(2):
            callback.on_train_batch_start(trainer, module, None, micro)
            clock.now += 5
            trainer.global_step = step + micro
            callback.on_train_batch_end(trainer, module, None, None, micro)
        rows.append(StepRow(step + 1, {"train/loss": 2.5 + step / 10, "train/tokens": 500.0 * (step + 1)}))
        if (step + 1) % every == 0:
            callback.on_steps_read(trainer, module, rows)
            rows.clear()
    callback.on_train_end(trainer, module)


def test_plain_lines_show_loss_speed_and_time_left(clock, capsys):
    run_steps(StepProgress(every_n_lines=4), clock)
    assert capsys.readouterr().out.splitlines() == [
        "step 4/10  loss 2.8000  50 tokens/s  0:01:00 left",
        "step 8/10  loss 3.2000  50 tokens/s  0:00:20 left",
    ]


def test_lines_come_early_then_every_30_seconds_and_at_the_end(clock, capsys):
    """Ten seconds a step: step 3 is 30 seconds after no line, step 8 is 30 seconds after step 5."""
    run_steps(StepProgress(), clock, last=10, every=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "2/10", "5/10", "8/10", "10/10"]
    run_steps(StepProgress(), clock, first=4, last=9, every=1)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["5/10", "6/10", "9/10"]


def test_a_line_waits_for_the_metrics(clock, capsys):
    run_steps(StepProgress(every_n_lines=3), clock)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["4/10", "6/10"]


def test_a_resumed_run_measures_speed_since_its_start(clock, capsys):
    run_steps(StepProgress(every_n_lines=4), clock, first=4)
    assert capsys.readouterr().out.splitlines() == ["step 8/10  loss 3.2000  50 tokens/s  0:00:20 left"]


def test_a_terminal_shows_a_bar(clock, monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda: console)
    run_steps(StepProgress(), clock)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).strip().splitlines()[-1]
    assert "8/10" in last
    assert "loss 3.2000  50 tokens/s" in last
    assert capsys.readouterr().out == ""


def test_a_part_has_a_bar_of_its_own_in_a_terminal_and_lines_elsewhere(monkeypatch, caplog):
    caplog.set_level("INFO", "lrsa_lightning")
    monkeypatch.setattr("lrsa_lightning.ruler.progress._EVERY_S", 0)
    screen = io.StringIO()
    for console in (Console(file=screen, force_terminal=True, width=120), Console(file=screen)):
        monkeypatch.setattr(progress, "Console", lambda console=console: console)
        with StepProgress().part("RULER check", 3) as advance:
            advance("vt/4096/r1", 7.0)
            time.sleep(0.3)  # the bar is drawn ten times a second
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search("RULER check .*1/3 vt/4096/r1", drawn)
    lines = [record.message for record in caplog.records]
    assert lines == ["RULER check: 1 of 3 batches done (vt/4096/r1), 0:00:07 left"]


def test_the_command_writes_plain_lines_without_a_terminal(arguments, in_tmp_path, capsys):
    arguments["trainer.callbacks"] = json.dumps([callback("StepProgress", every_n_lines=2)])
    main(command({**arguments, "trainer.max_steps": "4", "trainer.log_every_n_steps": "2"}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert all(re.search(r"loss \d\.\d{4}  [\d,]+ tokens/s  0:00:\d\d left$", line) for line in lines)


def test_a_log_file_has_the_run_from_the_first_line_to_the_last(arguments, in_tmp_path, capsys):
    """By epochs: six steps each. The figures are those of metrics.jsonl."""
    arguments |= {"trainer.max_steps": "-1", "trainer.max_epochs": "2", "data.val_files": arguments["data.train_files"]}
    arguments["trainer.callbacks"] = json.dumps([callback("Checkpoints", every_n_steps=6), callback("LossCurve")])
    main(command(arguments))
    out = capsys.readouterr().out.splitlines()
    rows = {row["step"]: row for row in metrics() if "train/loss" in row}
    steps = [line.split()[1] for line in out if line.startswith("step ") and "tokens/s" in line]
    assert steps == ["1/12", "2/12", "5/12", "10/12", "12/12"]
    assert f"step 5/12  loss {rows[5]['train/loss']:.4f}" in "\n".join(out)
    val = {row["step"]: row["val/loss"] for row in metrics() if "val/loss" in row}
    assert [line for line in out if "validation loss" in line] == [
        f"step {step}/12  validation loss {val[step]:.4f}" for step in (6, 12)
    ]
    first, last = out[: out.index(next(line for line in out if line.startswith("step ")))], out[-9:]
    said = "\n".join(first)
    for words in (
        "runs/x, a new run",
        "lag_size=16",
        "4 rows of at most 160 tokens, 640 together",
        " 2 epochs",
        "1 x cpu, precision 32-true",
    ):
        assert words in said, said
    said = "\n".join(last)
    for words in (
        "to step 12 in 0:00:",
        f"{int(rows[12]['train/tokens']):,} tokens",
        f"{rows[12]['train/loss']:.4f} at step 12, {rows[1]['train/loss']:.4f} at step 1; validation {val[12]:.4f}",
        "runs/x/checkpoints/step=12.ckpt",
        "runs/x/loss_curve.png",
        "lrsa chat runs/x --document FILE",
    ):
        assert words in said, said
    main(command({**arguments, "ckpt_path": "last"}))
    assert "lrsa fit: done" not in capsys.readouterr().out


def test_a_log_file_has_no_line_that_helps_nobody(arguments, train_file, in_tmp_path, monkeypatch):
    """In a file: no empty line, no colours, no warning of a library, and one line a fact; also after a resume."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of another test
    loggers = [callback("WandbLogger", project="test"), callback("MetricsFile")]
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], budgets=[0.5], num_samples=1)
    arguments |= {"data.val_files": str(train_file), "ckpt_path": "last", "trainer.logger": json.dumps(loggers)}
    arguments["trainer.callbacks"] = json.dumps([callback("Checkpoints", every_n_steps=1), ruler])
    known = r"Seed set|lrsa fit|  |RULER|niah|task |step \d|lrsa_lightning\.[\w.]+: |wandb: (W&B sync|Run data|View)"
    for steps in "23":
        line = [sys.executable, "-m", "lrsa_lightning", *command({**arguments, "trainer.max_steps": steps})]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if not re.match(known, line)] == []
        assert "\x1b" not in "".join(lines)


def test_steps_are_counted_against_steps_whatever_callbacks_are_given(arguments, in_tmp_path, capsys):
    """Two micro-batches a step: Lightning's own bar says 2/1."""
    bars = {
        "none": {"trainer.callbacks": "[]"},
        "one": {"trainer.callbacks": json.dumps([callback("StepProgress", every_n_lines=1)])},
        "Lightning's": {"trainer.callbacks": '[{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]'},
        "off": {"trainer.enable_progress_bar": "false"},
    }
    made = {name: LRSACLI(command({**arguments, **bar})[1:], run=False).trainer for name, bar in bars.items()}
    found = {name: type(trainer.progress_bar_callback).__name__ for name, trainer in made.items()}
    expected = {"none": "StepProgress", "one": "StepProgress", "Lightning's": "TQDMProgressBar", "off": "NoneType"}
    assert found == expected
    main(command({**arguments, **bars["one"], "trainer.max_steps": "1"}))
    assert "step 1/1  loss " in capsys.readouterr().out


def test_the_first_block_names_the_strategy_as_a_user_gives_it():
    trainer = SimpleNamespace(strategy=StepProgress())  # any class
    assert run_summary._strategy("sp_fsdp2", trainer) == ", sp_fsdp2"
    assert run_summary._strategy("auto", trainer) == ""
    assert run_summary._strategy({"class_path": "x.Own"}, trainer) == ", StepProgress"
