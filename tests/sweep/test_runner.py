"""Cells as processes: skipped, resumed, failing, interrupted, each on its own devices."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.errors import InputError
from lrsa_lightning.sweep import SweepRunner, make_cells, make_slots, read_sweep
from tests.sweep.conftest import begun, calls

MODES = {"mode": {"values": ["a", "b", "c"]}}


def run(file, runs, slots=None, said=None):
    sweep = read_sweep(file)
    runner = SweepRunner(sweep, runs, slots or make_slots(1, []), say=(said if said is not None else []).append)
    return [result.status for result in runner.run(make_cells(sweep))]


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def test_finished_cells_are_skipped_and_failed_ones_tried_again(make_sweep, runs):
    file, said = make_sweep(MODES), []
    (runs / "fail-b").touch()
    assert run(file, runs, said=said) == [0, 3, 0]  # the third ran although the second had failed
    assert "the stub's own error" in "\n".join(said)
    assert "mode-b: failed with exit status 3" in "\n".join(said)
    (runs / "fail-b").unlink()
    assert run(file, runs) == [0, 0, 0]
    assert begun(runs) == ["mode-a", "mode-b", "mode-c", "mode-b"]


def test_a_program_that_is_not_there_is_a_failed_cell(make_sweep, runs):
    said = []
    for command in (["${env}", "no-such-program", "${args}"], ["no-such-program", "${args}"]):
        assert run(make_sweep(MODES, command=command), runs / command[0].strip("${}"), said=said) == [127] * 3
    assert "no-such-program" in "\n".join(said)


def test_a_broken_cell_resumes_from_its_checkpoint_and_starts_over_without_one(make_sweep, runs, monkeypatch):
    import torch

    file = make_sweep(MODES)
    for mode in "ab":
        (runs / f"fail-{mode}").touch()
    run(file, runs)
    (runs / "fail-a").unlink()
    (runs / "fail-b").unlink()
    for mode in "ab":
        (runs / f"mode-{mode}/earlier").touch()
        (runs / f"mode-{mode}/checkpoints").mkdir()
    torch.save({"global_step": 3, "optimizer_states": []}, runs / "mode-a/checkpoints/step=3.ckpt")
    (runs / "mode-b/checkpoints/step=3.ckpt").write_bytes(b"corrupt")
    said = []
    assert run(file, runs, said=said) == [0, 0, 0]
    assert "mode-a: resumes" in said[0]
    assert (runs / "mode-a/earlier").exists()
    assert "mode-b: starts over" in "\n".join(said)
    assert not (runs / "mode-b/earlier").exists()
    assert (runs / ".set_aside/mode-b-1/checkpoints/step=3.ckpt").read_bytes() == b"corrupt"


def test_a_failed_cell_takes_nothing_outside_its_folder_with_it(make_sweep, runs):
    file = make_sweep({"mode": {"values": ["..yaml", "...yaml", "a"]}})
    outside = runs.parent / "precious"
    outside.touch()
    (runs / "precious").touch()
    for mode in ("..yaml", "...yaml"):
        (runs / f"fail-{mode}").touch()
    for _ in range(2):
        assert run(file, runs) == [3, 3, 0]
    assert outside.exists()
    assert (runs / "precious").exists()


def test_the_command_resumes_and_names_the_run_directory(make_sweep, runs):
    sweep = read_sweep(make_sweep(MODES))
    command = SweepRunner(sweep, runs, []).command(make_cells(sweep)[0])
    assert command[-4:] == ["--mode=a", f"--runs_dir={runs}", "--run_name=mode-a", "--ckpt_path=last"]


def test_a_folder_of_another_command_is_refused_before_anything_runs(make_sweep, runs):
    run(make_sweep(MODES), runs)
    with pytest.raises(InputError, match="another --runs_dir"):
        run(make_sweep({**MODES, "sleep": {"value": 0}}), runs)
    assert len(begun(runs)) == 3


def test_a_run_that_is_no_cell_is_neither_resumed_nor_removed(make_sweep, runs):
    (runs / "mode-b").mkdir()
    (runs / "mode-b/config.yaml").touch()
    with pytest.raises(InputError, match="no cell of this sweep"):
        run(make_sweep(MODES), runs)
    assert (runs / "mode-b/config.yaml").exists()
    assert not begun(runs)


def test_one_cell_a_device_and_never_two_on_one(make_sweep, runs):
    file = make_sweep({"mode": {"values": list("abcdef")}, "sleep": {"value": 0.3}})
    assert run(file, runs, make_slots(None, ["4", "6"])) == [0] * 6
    spans, device = {}, {}
    for name, what, visible, moment in calls(runs):
        spans.setdefault(name, []).append(float(moment))
        if what == "begins":
            device[name] = visible
    assert set(device.values()) == {"4", "6"}
    overlapping = 0
    for one in spans:
        for other in spans:
            if one < other and spans[one][0] < spans[other][1] and spans[other][0] < spans[one][1]:
                assert device[one] != device[other]
                overlapping += 1
    assert overlapping


def test_devices_are_split_equally():
    assert [slot.environment for slot in make_slots(2, ["0", "1", "2", "3"])] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert len(make_slots(None, [])) == 1
    assert len(make_slots(3, [])) == 3
    assert not make_slots(3, [])[0].environment
    with pytest.raises(InputError, match="divisor"):
        make_slots(3, ["0", "1", "2", "3"])


def command(file, runs, *further):
    words = [sys.executable, "-m", "lrsa_lightning", "sweep", str(file), "--runs_dir", str(runs), *further]
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # the background jobs of a shell ignore SIGINT
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_cells_save_and_the_same_command_resumes(make_sweep, runs, number, main, capsys):
    file = make_sweep(MODES)
    (runs / "wait-b").touch()
    first = command(file, runs)
    wait_for(runs / "mode-b/waiting")
    first.send_signal(number)
    _, error = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "the same command resumes the sweep" in error
    assert (runs / "mode-b/saved").exists()
    assert begun(runs) == ["mode-a", "mode-b"]  # nothing was started after the signal
    (runs / "wait-b").unlink()
    main([str(file), "--runs_dir", str(runs)])
    assert "mode-a: finished already" in capsys.readouterr().out
    assert begun(runs) == ["mode-a", "mode-b", "mode-b", "mode-c"]
    assert (runs / "report/fig2_loss.png").exists()


def test_a_cell_whose_parent_was_killed_is_not_started_twice(make_sweep, runs):
    file = make_sweep(MODES)
    (runs / "wait-b").touch()
    first = command(file, runs)
    wait_for(runs / "mode-b/waiting")
    first.kill()
    first.communicate(timeout=30)
    said = []
    assert run(file, runs, said=said) == [0, None, 0]
    assert any("mode-b: another process runs it" in line for line in said)
    (runs / "wait-b").unlink()
    wait_for(runs / "mode-b/config.yaml")
    time.sleep(0.3)
    assert run(file, runs) == [0, 0, 0]
    assert begun(runs).count("mode-b") == 2  # nobody saw how the first ended


def test_children_that_do_not_end_are_killed(make_sweep, runs):
    sweep = read_sweep(make_sweep({"mode": {"value": "a"}}, command=["sh", "-c", "trap '' TERM; sleep 60", "${args}"]))

    def interrupt(line):
        if "starts" in line:
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            SweepRunner(sweep, runs, make_slots(1, []), grace_seconds=0.5, say=interrupt).run(make_cells(sweep))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10
    assert json.loads((runs / "cells/mode-a.json").read_text())["status"] == -signal.SIGKILL


@pytest.fixture
def main():
    """The command, in this process; gives SIGTERM its handler back."""
    before = signal.getsignal(signal.SIGTERM)
    yield COMMANDS["sweep"].load()
    signal.signal(signal.SIGTERM, before)


def test_one_cell_and_the_list(make_sweep, runs, main, capsys):
    words = [str(make_sweep(MODES)), "--runs_dir", str(runs)]
    main([*words, "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["mode-a", "mode-b", "mode-c"]
    assert "--mode=b" in lines[3]
    assert not begun(runs)
    main([*words, "--cell", "2"])
    assert begun(runs) == ["mode-b"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--cell", "4"])
    assert caught.value.code == 2
    assert "cells 1 to 3" in capsys.readouterr().err


def test_the_exit_status_is_1_where_a_cell_failed(make_sweep, runs, main, capsys):
    words = [str(make_sweep(MODES)), "--runs_dir", str(runs)]
    (runs / "fail-b").touch()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "failed (3)" in out
    assert "* 76" in out  # the best of those that ended
    assert "report.html" in out
    (runs / "fail-b").unlink()
    main(words)


def test_the_lock_goes_with_the_child(make_sweep, runs):
    """Nobody else may hold it: a second call at once after the first finds every cell free."""
    file = make_sweep(MODES)
    assert run(file, runs) == [0, 0, 0]
    open_files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert not [name for name in open_files if name.startswith(str(runs.resolve())) and name.endswith(".lock")]


def test_unknown_options_are_refused_before_any_cell_starts(make_sweep, runs, tmp_path):
    program = tmp_path / "lrsa"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {tmp_path}/calls\n'
        'case "$*" in *model.lrr*) echo "usage\nerror: unrecognized\n  arguments: --model.lrr" >&2; exit 2;; esac\n'
    )
    program.chmod(0o755)
    keys = {"program": str(program), "command": ["${env}", "${program}", "fit", "${args}"]}
    message = "sweep toy: the first cell's options are refused, nothing was started: error: unrecognized arguments"
    with pytest.raises(InputError, match=message):
        run(make_sweep({"model.lrr": {"values": [1, 2]}}, **keys), runs)
    (words,) = (tmp_path / "calls").read_text().splitlines()
    assert words.endswith("--print_config")
    assert not list(runs.iterdir())
    file = make_sweep({"model.lr": {"values": [1, 2]}}, **keys)
    assert run(file, runs) == [0, 0]
    assert run(file, runs) == [0, 0]  # what is finished is not read again
    assert (tmp_path / "calls").read_text().count("--print_config") == 2
