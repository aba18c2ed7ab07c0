"""What a command shows as one line, and what as a traceback."""

import os
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from safetensors import SafetensorError, safe_open

from lrsa_lightning.callbacks import EndTogether
from lrsa_lightning.callbacks.run_begins import FirstStep
from lrsa_lightning.cli import main
from lrsa_lightning.command_line import input_boundary
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.errors import InputError
from lrsa_lightning.library_errors import computing_has_begun, reading
from tests.conftest import make_model
from tests.runs import callback, command


def shown(capsys, call) -> str:
    with pytest.raises(SystemExit) as caught:
        report_input_errors(call)()
    assert caught.value.code == 2
    return capsys.readouterr().err


def fails(error: BaseException):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    "error",
    [
        InputError("x"),
        MisconfigurationException("x"),
        SafetensorError("x"),
        EOFError("x"),
        PermissionError(13, "x", "file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_about_the_input_are_one_line(capsys, error):
    said = shown(capsys, fails(error))
    assert said.startswith("lrsa: error: ")
    assert "x" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError, RuntimeError])
def test_our_own_bugs_propagate(error):
    with pytest.raises(error):
        report_input_errors(fails(error("x")))()
    with pytest.raises(error), reading("the model"):
        raise error("x")


def test_a_wrong_call_of_a_library_is_our_bug():
    def call():
        make_model().forward(nothing=1, of_this="kind")

    def wrong_signature():
        safe_open()

    for bug in (call, wrong_signature):
        with pytest.raises((TypeError, ValueError)):
            report_input_errors(bug)()


def test_a_librarys_error_about_a_value_names_what_was_read(capsys, tmp_path):
    def call():
        with reading("model.name_or_path 'x'", "give another"):
            make_model(hidden_size="big")

    assert shown(capsys, call).startswith("lrsa: error: model.name_or_path 'x': ")


def test_an_input_error_wrapped_by_a_library_is_found(capsys):
    def call():
        try:
            raise InputError("the reason")
        except InputError as error:
            raise RuntimeError("around it") from error

    assert shown(capsys, call) == "lrsa: error: the reason\n"


def test_long_messages_become_one_line(capsys):
    said = shown(capsys, fails(MisconfigurationException("first\n  second " + "x" * 5000)))
    assert "first second x" in said
    assert len(said) < 1000
    assert said.count("\n") == 1


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("LRSA_DEBUG", "1")
    said = shown(capsys, fails(MisconfigurationException("x")))
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("lrsa: error: x")


class Failing(Callback):
    """Raises in the given hook."""

    def __init__(self, hook: str, error: str):
        self.error = {"os": OSError("no disk"), "input": InputError("wrong")}[error]
        setattr(self, hook, self._fail)
        if hook == "__init__":
            self._fail()

    def _fail(self, *_):
        raise self.error


@pytest.mark.parametrize(
    ("hook", "error", "is_line"),
    [
        ("__init__", "input", True),
        ("__init__", "os", True),
        ("on_train_start", "os", True),
        ("on_train_batch_end", "os", False),
        ("on_train_batch_end", "input", True),
    ],
)
def test_only_before_the_first_step_a_librarys_error_is_the_users(arguments, in_tmp_path, capsys, hook, error, is_line):
    entry = {"class_path": f"{__name__}.Failing", "init_args": {"hook": hook, "error": error}}
    chosen = command({**arguments, "trainer.callbacks": str([entry])})
    with pytest.raises(SystemExit if is_line else OSError, match="2" if is_line else "no disk"):
        main(chosen)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lrsa: error: ")]
    assert len(said) == is_line


def test_only_the_first_process_reports_at_once(capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(input_boundary.time, "sleep", waited.append)
    shown(capsys, fails(InputError("x")))
    assert waited == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "x" in shown(capsys, fails(InputError("x")))
    assert waited == [input_boundary._GRACE_S]


@pytest.mark.parametrize("has_begun", [False, True])
def test_before_the_first_step_a_runs_processes_are_killed_at_once(monkeypatch, has_begun):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher = object.__new__(_SubprocessScriptLauncher)
    launcher.procs = [process]
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    monkeypatch.setattr("lrsa_lightning.callbacks.end_together._GRACE_S", 0.5)
    computing_has_begun.set(False)
    if has_begun:
        FirstStep().on_train_batch_start(trainer, None)
    started = time.monotonic()
    EndTogether().on_exception(trainer, None, InputError("x"))
    computing_has_begun.set(False)
    assert process.returncode == -9
    assert (time.monotonic() - started >= 0.5) == has_begun


def test_a_callbacks_input_error_is_the_commands(arguments, in_tmp_path, capsys):
    entry = callback("RulerEval", tasks=["x"])
    with pytest.raises(SystemExit):
        main(command({**arguments, "trainer.callbacks": str([entry])}))
    assert "unknown RULER task 'x'" in capsys.readouterr().err.splitlines()[0]


def test_a_librarys_plain_error_is_the_users_only_inside_reading():
    def builds():
        make_model(rope_parameters={"rope_type": "nope"})

    with pytest.raises(KeyError):
        report_input_errors(builds)()
    with pytest.raises(InputError, match="the model: KeyError 'nope'"), reading("the model"):
        builds()


def test_useless_advice_of_libraries_is_hidden():
    lines = (
        "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider increasing it.",
        "Precision bf16-mixed is not supported by the model summary.  Estimated model size in MB will not be accurate.",
    )
    with warnings.catch_warnings(record=True) as heard:
        report_input_errors(lambda: [warnings.warn(line, stacklevel=1) for line in (*lines, "of ours")])()
    assert [str(warning.message) for warning in heard] == ["of ours"]


@pytest.mark.parametrize("early", [False, True], ids=["imported by the command", "imported before"])
def test_a_line_of_lightning_is_printed_once(early):
    """Where a command imports Lightning late, the lines went to Lightning's handler and to ours."""
    script = f"""
from lrsa_lightning.command_line.input_boundary import report_input_errors
{"import lightning" if early else ""}
@report_input_errors
def run(args):
    from lightning import seed_everything
    seed_everything(3)
run([])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Seed set to 3") == 1


def test_one_rank_informs_and_each_rank_warns():
    """As the processes of a launcher: only the environment tells them apart."""
    script = """
import logging
from lrsa_lightning.command_line.input_boundary import report_input_errors
@report_input_errors
def run(args):
    from lightning import seed_everything
    seed_everything(3)
    logging.getLogger("lrsa_lightning.x").info("information")
    logging.getLogger("lrsa_lightning.x").warning("a warning")
run([])
"""
    said = []
    for rank in "01":
        environment = {**os.environ, "RANK": rank, "LOCAL_RANK": rank}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        said.append([words in done.stderr for words in ("information", "a warning", "Seed set to 3")])
    assert said == [[True, True, True], [False, True, False]]
