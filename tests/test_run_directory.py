"""A run's directory: one process writes there, a start that fails leaves nothing, and it works wherever it lies."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.callbacks import SaveConfig
from lrsa_lightning.cli import LRSACLI, main
from lrsa_lightning.export import export
from lrsa_lightning.run_directory import first_of_all
from lrsa_lightning.run_start import MARKER, RunStart
from tests.interruptions import interruption
from tests.runs import callback, command, losses
from tests.test_folder_lock import hold

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RUN = Path("runs/x")
EACH_STEP = json.dumps([callback("Checkpoints", every_n_steps=1)])


def refusal(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 or "Traceback" not in error
    return error


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def two_steps(arguments) -> dict[str, str]:
    """The options of a run of two steps that has ended."""
    arguments |= {"trainer.callbacks": EACH_STEP, "trainer.max_steps": "2"}
    main(command(arguments))
    return arguments


def test_two_processes_never_write_one_run(two_steps, capsys, monkeypatch):
    """Whether the second begins, resumes or validates: nothing of the first one's is touched."""
    monkeypatch.setattr("lrsa_lightning.folder_lock._PATIENCE", 0.1)
    holder = hold(RUN)
    before = everything(RUN)
    begin, resume = {"run_name": "x"}, {"ckpt_path": "last", "trainer.max_steps": "3"}
    for how, subcommand in ((begin, "fit"), (resume, "fit"), ({"ckpt_path": "last"}, "validate")):
        error = refusal(capsys, command({**two_steps, **how}, subcommand))
        assert f"run runs/x is being written by process {holder.pid} on " in error
    assert everything(RUN) == before
    holder.kill()
    holder.wait()
    main(command({**two_steps, **resume}))
    assert list(losses()) == [0, 1, 2]


def is_held(run: Path) -> bool:
    """Whether another process would be refused: an own descriptor has its own lock."""
    with (run.parent / ".locks" / f"{run.name}.lock").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_run_holds_its_directory_from_its_first_file_until_it_ends(arguments, monkeypatch):
    held = []
    begin = RunStart.begin
    monkeypatch.setattr(RunStart, "begin", lambda self: held.append((is_held(RUN), RUN.exists())) or begin(self))
    monkeypatch.setattr(SaveConfig, "on_fit_end", lambda *_: held.append(is_held(RUN)), raising=False)
    main(command({**arguments, "trainer.max_steps": "1"}))
    assert held == [(True, False), True]
    assert not is_held(RUN)


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_one_process_of_all_hosts_takes_the_lock(monkeypatch, environment, is_first):
    for name in ("RANK", "SLURM_PROCID", "GROUP_RANK", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert first_of_all() is is_first


@pytest.mark.parametrize("name", ["../../y", "/tmp/y", ".", "..", "a\nb", "", "cells"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_run_name_that_is_no_part_of_a_path_is_refused(arguments, capsys, monkeypatch, name, by):
    arguments.pop("run_name")
    if by == "option":
        arguments["run_name"] = name
    elif name == "":
        pytest.skip("an empty variable is as none")
    else:
        monkeypatch.setenv("LRSA_RUN_NAME", name)
    error = refusal(capsys, command(arguments))
    assert ("--run_name" if by == "option" else "LRSA_RUN_NAME") + f" is {name!r}: expected" in error
    assert not Path("runs").exists()


FAILURES = {
    "callback that fails in setup": {"trainer.callbacks": json.dumps([callback("LossCurve", reference="nowhere")])},
    "no such device": {"trainer.accelerator": "cuda"},
    "optimizer": {"model.betas": "[2.0, 0.9]"},
    "first step": {"trainer.callbacks": json.dumps([interruption("FailsAtOnce")])},
    "bad data": {"data.train_files": "broken.jsonl"},
    "signal": {"trainer.callbacks": json.dumps([interruption("SignalAtBatch", signal="SIGTERM", batch=0)])},
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_start_that_fails_leaves_its_name_free(arguments, how):
    import wandb

    Path("broken.jsonl").write_text("{broken\n")
    logger = [callback("WandbLogger", project="test", save_dir=None), *json.loads(arguments["trainer.logger"])]
    arguments |= {"trainer.logger": json.dumps(logger), "trainer.max_steps": "2"}
    with pytest.raises((SystemExit, Exception)):
        main(command({**arguments, **FAILURES[how]}))
    assert not RUN.exists()
    assert wandb.run is None
    main(command(arguments))
    assert list(losses()) == [0, 1]
    assert not (RUN / MARKER).exists()
    assert len(list(RUN.glob("wandb/offline-run-*"))) == 1


def test_a_failure_after_the_first_step_leaves_the_run(arguments, capsys):
    steps = json.dumps([interruption("FailsAtOnce", step=1)])
    with pytest.raises(RuntimeError):
        main(command({**arguments, "trainer.callbacks": steps}))
    assert list(losses()) == [0]
    assert "holds a run already" in refusal(capsys, command(arguments))


def test_a_killed_starts_leftovers_make_way(arguments):
    """As `kill -9` leaves them: no process could clear them."""
    start = RunStart(RUN)
    start.begin()
    (RUN / "config.yaml").write_text("run_name: x\n")
    (RUN / "wandb").mkdir()
    main(command({**arguments, "trainer.max_steps": "1"}))
    assert list(losses()) == [0]
    assert not (RUN / "wandb").exists()
    assert not (RUN / "config-1.yaml").exists()


def test_a_failed_start_touches_nothing_that_lay_there_before():
    (RUN / "notes").mkdir(parents=True)
    (RUN / "notes/mine").write_text("mine")
    (RUN / "config.yaml").write_text("earlier")
    before = everything(RUN)
    start = RunStart(RUN)
    start.begin()
    (RUN / "config-1.yaml").touch()
    (RUN / "ruler").mkdir()
    start.undo()
    assert everything(RUN) == before
    start.undo()  # without a marker
    assert everything(RUN) == before


def test_what_a_failed_start_measured_is_set_aside():
    start = RunStart(RUN)
    start.begin()
    (RUN / "ruler").mkdir()
    (RUN / "ruler/step-000000.jsonl").write_text("{}\n")
    (RUN / "config.yaml").touch()
    start.undo()
    assert not RUN.exists()
    assert {path.name for path in Path("runs/.set_aside/x-1").iterdir()} == {"ruler", "config.yaml"}


def test_a_start_whose_checkpoint_is_there_is_a_run():
    start = RunStart(RUN)
    start.begin()
    (RUN / "checkpoints").mkdir()
    (RUN / "checkpoints/step=1.ckpt").write_bytes(b"torn")
    start.undo()
    assert (RUN / "checkpoints/step=1.ckpt").exists()
    assert not (RUN / MARKER).exists()


@pytest.fixture
def moved(arguments, tmp_path, monkeypatch) -> Path:
    """A run of two steps, named by relative paths, that has been moved and is looked at from another folder."""
    shutil.copytree(arguments["data.tokenizer"], "tokenizer")
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], num_samples=1, budgets=[1.0])
    arguments |= {"data.tokenizer": "tokenizer", "data.train_files": "train.jsonl", "trainer.max_steps": "2"}
    arguments |= {"trainer.callbacks": json.dumps([*json.loads(EACH_STEP), ruler]), "data.mixture": "{train.jsonl: 1}"}
    main(command(arguments))
    run = tmp_path / "elsewhere/y"
    run.parent.mkdir()
    RUN.rename(run)
    Path("runs/.locks").rename("gone")
    Path("runs").rmdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return run


def test_a_run_goes_on_wherever_it_lies(moved, tmp_path, monkeypatch):
    main(["fit", "--config=../elsewhere/y/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert (moved / "checkpoints/step=3.ckpt").exists()
    assert (moved / "ruler/step-000003.jsonl").exists()
    assert [json.loads(line)["step"] for line in (moved / "metrics.jsonl").open() if "train/loss" in line] == [0, 1, 2]
    (moved / "ruler/step-000003.jsonl").unlink()
    main(["validate", f"--config={moved}/config-1.yaml", "--ckpt_path=last"])
    assert (moved / "ruler/step-000003.jsonl").exists()
    monkeypatch.chdir(moved)
    main(["fit", "--config=config.yaml", "--ckpt_path=last", "--trainer.max_steps=4"])
    assert (moved / "checkpoints/step=4.ckpt").exists()
    assert not any((tmp_path / "cwd").iterdir())
    assert sorted(path.name for path in moved.parent.iterdir()) == [".locks", "y"]


def test_a_moved_run_is_exported(moved, tmp_path):
    export(Path("../elsewhere/y"), tmp_path / "exported")
    assert (tmp_path / "exported/tokenizer.json").exists()


def test_a_run_may_begin_another_beside_it(moved):
    main(["fit", "--config=../elsewhere/y/config.yaml", "--run_name=z", "--trainer.max_steps=1"])
    assert (moved.parent / "z/checkpoints/step=1.ckpt").exists()


def test_a_name_or_folder_on_the_command_line_is_another_run(moved, tmp_path):
    main(["fit", "--config=../elsewhere/y/config.yaml", "--runs_dir=here", "--trainer.max_steps=1"])
    assert (tmp_path / "cwd/here/x/checkpoints/step=1.ckpt").exists()


def test_the_demos_tokenizer_goes_with_the_run(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("lrsa_lightning.data.demo.NUM_SAMPLES", 20)
    demo = {"data.source": "demo", "data.seq_len": "512", "data.extend": "false", "trainer.max_steps": "1"}
    arguments["model.from_config"] = json.dumps({**json.loads(arguments["model.from_config"]), "vocab_size": 1024})
    for key in ("data.train_files", "data.tokenizer"):
        arguments.pop(key)
    main(command({**arguments, **demo, "trainer.callbacks": EACH_STEP, "data.global_batch_size": "2"}))
    shutil.rmtree(".lrsa_cache")
    export(RUN, tmp_path / "exported")
    assert (tmp_path / "exported/tokenizer.json").read_bytes() == (RUN / "tokenizer/tokenizer.json").read_bytes()


def rewrite(path: Path, change) -> None:
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def as_saved_by_an_older_version(config: dict) -> None:
    """With the run's own folders and W&B id filled in, relative paths, and without some keys of today."""
    config["trainer"]["default_root_dir"] = "runs/x"
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = "runs/x/checkpoints"
    config["data"] |= {"train_files": "train.jsonl", "cache_dir": ".lrsa_cache"}
    for section, key in (("data", "packing"), ("data", "num_workers"), ("model", "rope_parameters")):
        del config[section][key]
    del config["model"]["attention"]["init_args"]["v_weight"]


@pytest.mark.parametrize("by", ["its config", "the command line"])
def test_a_run_of_an_older_version_goes_on(two_steps, by):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    given = ["fit", "--config=runs/x/config.yaml"] if by == "its config" else command(two_steps)
    main([*given, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert list(losses()) == [0, 1, 2]


def test_a_new_key_that_is_not_at_its_default_is_a_difference(two_steps, capsys):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    options = {"data.template": "chatml", "model.attention.v_weight": "0.5", "ckpt_path": "last"}
    error = refusal(capsys, command({**two_steps, **options}))
    assert "data.template: base -> chatml" in error
    assert "model.attention.init_args.v_weight: 1.0 -> 0.5" in error


def test_an_older_runs_folders_move_with_it(two_steps, tmp_path, monkeypatch):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    RUN.rename("y")
    main(["fit", "--config=y/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert Path("y/checkpoints/step=3.ckpt").exists()
    assert not RUN.exists()


def test_two_commands_of_one_process_are_two_runs(arguments, monkeypatch):
    names = iter(["a", "b"])
    monkeypatch.setattr("lrsa_lightning.run_directory._new_name", lambda config: next(names))
    arguments.pop("run_name")
    for _ in range(2):
        LRSACLI(command({**arguments, "trainer.max_steps": "1"}))
        assert "LRSA_RUN_NAME" not in os.environ
    assert list(losses("a")) == list(losses("b")) == [0]
