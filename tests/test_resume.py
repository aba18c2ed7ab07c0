"""A resumed run goes on exactly where its checkpoint was, again and again, however its batches are cut."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.commands.training import LRSACLI
from lrsa_lightning.data.loader import ResumableLoader
from lrsa_lightning.data.sampler import GlobalBatchSampler
from lrsa_lightning.run.saved_config import dump
from tests.runs import callback, checkpoints, command, kept_curve, losses

_PATIENCE = 300  # seconds of a test, on a machine that has much else to do
pytestmark = pytest.mark.usefixtures("in_tmp_path", "in_time")


@pytest.fixture
def in_time():
    """Fails where a run does not end, as with a loader that has nothing more to give."""

    def fail(*_) -> None:
        raise TimeoutError("the run hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(_PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_loader_that_has_read_its_epoch_begins_the_next():
    sampler = GlobalBatchSampler([1] * 9, [1] * 9, 4, 2, rank=0, data_parallel_size=1, seed=0)
    rows = type("Rows", (), {"__getitem__": lambda self, batch: batch})()
    loader = ResumableLoader(rows, sampler, num_workers=0)
    first = [*loader]
    assert loader.state_dict()["consumed"] == 8
    sampler.set_epoch(1)
    second = [*loader]
    assert len(first) == len(second) == 4
    assert first != second
    loader.load_state_dict({"consumed": 8})
    assert [*loader] == second
    loader.load_state_dict({"consumed": 4})
    assert [*loader] == second[2:]


def test_a_resumed_run_equals_the_uninterrupted_one(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command({**arguments, "run_name": "whole"}))
    main(command(arguments))
    run = Path("runs/x")
    # As a run killed after step 4 left it: logged beyond its last checkpoint, which is of step 2.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 4))
    curve = '[{"class_path": "lrsa_lightning.callbacks.LossCurve"}]'
    main(
        [
            "fit",
            f"--config={run / 'config.yaml'}",
            f"--trainer.callbacks+={curve}",
            f"--ckpt_path={run}/checkpoints/step=2.ckpt",
        ]
    )
    assert losses("x") == losses("whole")
    states = [torch.load(Path("runs") / r / "checkpoints/step=6.ckpt", weights_only=True) for r in ("whole", "x")]
    first, second = (state["state_dict"] for state in states)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (run / "config-1.yaml").exists()


@pytest.mark.parametrize(("workers", "limit"), [("0", "max_steps"), ("1", "max_steps"), ("1", "max_epochs")])
def test_every_resume_goes_on_with_the_next_unseen_sample(arguments, workers, limit):
    """An epoch has six steps: within one, at its end, a step later, and at the end of the next.

    A resume from a step that a resumed run reached must be as exact as the first one.
    """
    arguments |= {"trainer.callbacks": kept_curve(), "trainer.max_steps": "14", "data.num_workers": workers}
    arguments |= {"trainer.max_steps": "-1", "trainer.max_epochs": "3"} if limit == "max_epochs" else {}
    main(command(arguments))
    whole = losses()
    for stop in (3, 6, 7, 12):
        main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
        assert losses() == whole


def test_a_resume_at_an_epochs_end_may_follow_another(arguments):
    """Lightning, resumed there, does not count the next epoch as begun, and its checkpoints say so."""
    ours = json.dumps([callback("Checkpoints", every_n_steps=6)])
    main(command({**arguments, "trainer.max_steps": "14", "trainer.callbacks": ours}))
    whole = losses()
    for stop in (6, 12):
        main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
        assert losses() == whole


@pytest.mark.parametrize(("stop", "micro"), [(4, "1"), (6, "1"), (6, "4"), (8, "4")])
def test_a_resume_may_change_how_a_global_batch_is_cut(arguments, stop, micro):
    """As another number of ranks does: the checkpoint's count of micro-batches then means something else."""
    arguments |= {"trainer.callbacks": kept_curve(), "trainer.max_steps": "14"}
    main(command(arguments))
    whole = losses()
    change = f"--data.micro_batch_size={micro}"
    main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt", change])
    assert losses() == pytest.approx(whole, abs=1e-4)
    # Lightning has written that checkpoint again, after the first micro-batch.
    main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path=runs/x/checkpoints/step={stop}.ckpt"])
    assert losses() == pytest.approx(whole, abs=1e-4)
    state = torch.load("runs/x/checkpoints/step=8.ckpt", weights_only=True)
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"seed": 42, "epoch": 1, "consumed": 8}]


def test_last_resumes_from_the_newest_checkpoint(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command(arguments))
    main(["fit", "--config=runs/x/config.yaml", "--ckpt_path=last", "--trainer.max_steps=8"])
    assert list(losses()) == [*range(1, 9)]


def test_a_checkpoint_does_not_override_the_command_line(arguments):
    arguments["trainer.callbacks"] = checkpoints(2)
    main(command(arguments))
    cli = LRSACLI(
        command(
            {
                **arguments,
                "run_name": "y",
                "model.lr": "0.5",
                "trainer.max_steps": "7",
                "ckpt_path": "runs/x/checkpoints/step=6.ckpt",
            }
        )
    )
    assert cli.model.lr == 0.5
    assert yaml.safe_load(Path("runs/y/config.yaml").read_text())["model"]["lr"] == 0.5


def resume(*options: str, path: str = "last") -> None:
    main(["fit", "--config=runs/x/config.yaml", f"--ckpt_path={path}", *options])


@pytest.fixture
def two_steps(arguments):
    """A run of two steps with a checkpoint of each."""
    arguments |= {"trainer.callbacks": json.dumps([callback("Checkpoints", every_n_steps=1)]), "trainer.max_steps": "2"}
    main(command(arguments))
    return Path("runs/x")


def test_a_corrupt_last_checkpoint_is_skipped_with_a_warning(two_steps, caplog):
    folder = two_steps / "checkpoints"
    os.truncate(folder / "step=2.ckpt", 1000)
    (folder / ".step=3.ckpt.partial").write_bytes(b"PK")
    resume("--trainer.max_steps=3")
    warnings = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert warnings == [
        f"{folder}: skipped, training cannot resume from: step=2.ckpt, .step=3.ckpt.partial; last is step=1.ckpt",
    ]
    assert list(losses()) == [1, 2, 3]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]


def kept_by_others(path: Path) -> None:
    """Rewrites a checkpoint with a callback's state that only code could make again."""
    state = torch.load(path, weights_only=True)
    state["callbacks"]["Other"] = {"file": Path("a")}
    torch.save(state, path)


def test_a_complete_checkpoint_that_cannot_be_loaded_is_skipped_with_the_reason(two_steps, caplog):
    kept_by_others(two_steps / "checkpoints" / "step=2.ckpt")
    resume("--trainer.max_steps=3")
    assert "cannot resume from: step=2.ckpt; last is step=1.ckpt" in caplog.text
    assert "step=2.ckpt is complete, but holds pathlib" in caplog.text
    assert list(losses()) == [1, 2, 3]
    aside = [json.loads(line) for line in (two_steps / "metrics-1.jsonl").read_text().splitlines()]
    assert {row["step"] for row in aside} == {2}


@pytest.mark.parametrize("harm", ["corrupt", "not loadable"])
def test_a_run_never_starts_over_beside_checkpoints(two_steps, capsys, harm):
    """If none of them can be loaded, the run is refused and its files do not change."""
    for path in (two_steps / "checkpoints").glob("step=*"):
        os.truncate(path, 1000) if harm == "corrupt" else kept_by_others(path)
    before = {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        resume("--trainer.max_steps=3")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "checkpoints holds checkpoints, but none to resume from" in error
    reason = "is corrupt or no checkpoint" if harm == "corrupt" else "is complete, but holds pathlib"
    assert all(f"step={step}.ckpt {reason}" in error for step in (1, 2))
    assert {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()} == before


def test_a_run_that_was_killed_in_its_first_write_begins_again_and_keeps_its_history(two_steps):
    folder = two_steps / "checkpoints"
    for path in folder.iterdir():
        path.unlink()
    (folder / ".step=1.ckpt.partial").write_bytes(b"PK")
    before = (two_steps / "metrics.jsonl").read_text()
    resume()
    assert (two_steps / "metrics-1.jsonl").read_text() == before
    assert list(losses()) == [1, 2]


def test_a_corrupt_checkpoint_named_by_hand_is_refused(two_steps, capsys):
    os.truncate(two_steps / "checkpoints" / "step=2.ckpt", 1000)
    with pytest.raises(SystemExit):
        resume(path=f"{two_steps}/checkpoints/step=2.ckpt")
    assert "is corrupt or no checkpoint" in capsys.readouterr().err


def test_a_required_checkpoint_that_is_missing_is_an_error(arguments, capsys):
    for ckpt_path in ({"ckpt_path": "last"}, {}):
        with pytest.raises(SystemExit):
            main(command({**arguments, **ckpt_path, "require_checkpoint": "true"}))
        error = capsys.readouterr().err
        assert error.startswith("lrsa: error: there is no checkpoint to go on from in runs/x")
        assert error.count("\n") == 1
        assert not Path("runs").exists()


def test_the_same_command_line_starts_a_run_and_goes_on_with_it(arguments):
    """What a job that is queued again runs; one that was killed before its first checkpoint starts anew."""
    arguments |= {"trainer.callbacks": json.dumps([callback("Checkpoints")]), "ckpt_path": "last"}
    main(command({**arguments, "trainer.max_steps": "3"}))
    assert list(losses()) == [1, 2, 3]
    for path in Path("runs/x/checkpoints").iterdir():
        path.unlink()
    main(command({**arguments, "trainer.max_steps": "4"}))
    assert list(losses()) == [1, 2, 3, 4]
    main(command({**arguments, "trainer.max_steps": "5"}))
    assert list(losses()) == [1, 2, 3, 4, 5]


def test_a_validation_needs_its_checkpoint(arguments, capsys):
    with pytest.raises(SystemExit):
        main(command({**arguments, "ckpt_path": "last"}, "validate"))
    assert "there is no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("seed_everything=7", "seed_everything: 42 -> 7"),
        ("model.attention.lag_size=8", "model.attention.init_args.lag_size: 16 -> 8"),
        ("data.seq_len=128", "data.seq_len: 160 -> 128"),
        ("data.mixture={'train.jsonl': 0.5}", "data.mixture"),
        ("data.template=chatml", "data.template: auto -> chatml"),
    ],
)
def test_a_resume_as_another_run_is_refused_and_shows_the_difference(two_steps, capsys, change, shown):
    with pytest.raises(SystemExit) as caught:
        resume(f"--{change}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert shown in error
    assert "--allow_mismatch true" in error
    assert not (two_steps / "config-1.yaml").exists()


def test_a_mismatch_can_be_allowed_once_and_is_recorded(two_steps, capsys):
    resume("--seed_everything=7", "--allow_mismatch=true", "--trainer.max_steps=3")
    assert (two_steps / "config-1.diff").read_text().splitlines()[:1] == ["  seed_everything: 42 -> 7"]
    assert "trainer.max_steps: 2 -> 3" in (two_steps / "config-1.diff").read_text()
    saved = yaml.safe_load((two_steps / "config-1.yaml").read_text())
    assert (saved["seed_everything"], saved["allow_mismatch"]) == (7, False)
    with pytest.raises(SystemExit):
        resume()  # the run's newest configuration has another seed by now
    assert "seed_everything: 7 -> 42" in capsys.readouterr().err


def test_versions_and_commit_lie_beside_the_configuration(two_steps):
    versions = yaml.safe_load((two_steps / "versions.yaml").read_text())
    assert versions["torch"] == torch.__version__
    assert {"python", "lrsa_lightning", "lightning", "transformers"} <= versions.keys()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", versions.get("lrsa_lightning_commit", "0" * 40))


def test_a_secret_of_the_environment_is_saved_as_a_reference(arguments, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "s3cret-value-123")
    logger = {"class_path": "lrsa_lightning.callbacks.MetricsFile", "init_args": {"save_dir": "${oc.env:MY_API_KEY}"}}
    directory = Path("saved")
    directory.mkdir()
    cli = LRSACLI([*command(arguments)[1:], f"--trainer.logger={json.dumps([logger])}"], run=False)
    config = cli.config.clone()
    config.trainer.logger[0].init_args.save_dir = "s3cret-value-123"
    text = dump(cli.parser, config)
    assert "s3cret" not in text
    assert "${oc.env:MY_API_KEY}" in text
