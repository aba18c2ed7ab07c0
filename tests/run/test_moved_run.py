"""A run works from any folder, wherever it has been moved, and when an older version began it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.export import export
from lrsa_lightning.run.resume_guard import check_resume
from tests.runs import EACH_STEP, callback, command, losses, refusal

pytestmark = pytest.mark.usefixtures("in_tmp_path")
RUN = Path("runs/x")


@pytest.fixture
def moved(arguments, tmp_path, monkeypatch) -> Path:
    """A run of two steps with relative paths, moved, and used from another folder."""
    shutil.copytree(arguments["data.tokenizer"], "tokenizer")
    ruler = callback("RulerEval", tasks=["niah_single_1"], lengths=[512], num_samples=1, budgets=[1.0])
    arguments |= {"data.tokenizer": "tokenizer", "data.train_files": "train.jsonl", "trainer.max_steps": "2"}
    arguments |= {"trainer.callbacks": json.dumps([*json.loads(EACH_STEP), ruler]), "data.mixture": "{train.jsonl: 1}"}
    main(command(arguments))
    run = tmp_path / "elsewhere/y"
    run.parent.mkdir()
    RUN.rename(run)
    Path("runs").rmdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return run


def test_a_moved_run_resumes(moved, tmp_path, monkeypatch):
    main(["fit", "--config=../elsewhere/y/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert (moved / "checkpoints/step=3.ckpt").exists()
    assert (moved / "ruler/step-000003.jsonl").exists()
    assert [json.loads(line)["step"] for line in (moved / "metrics.jsonl").open() if "train/loss" in line] == [1, 2, 3]
    (moved / "ruler/step-000003.jsonl").unlink()
    main(["validate", f"--config={moved}/config-1.yaml", "--ckpt_path=last"])
    assert (moved / "ruler/step-000003.jsonl").exists()
    monkeypatch.chdir(moved)
    main(["fit", "--config=config.yaml", "--ckpt_path=last", "--trainer.max_steps=4"])
    assert (moved / "checkpoints/step=4.ckpt").exists()
    assert not any((tmp_path / "cwd").iterdir())
    assert sorted(path.name for path in moved.parent.iterdir()) == ["y"]


def test_a_moved_run_is_exported(moved, tmp_path):
    export(Path("../elsewhere/y"), tmp_path / "exported")
    assert (tmp_path / "exported/tokenizer.json").exists()


def test_a_saved_configuration_can_start_another_run(moved):
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
    """It has the run's folders and W&B id filled in, relative paths, and lacks some of today's keys."""
    config["trainer"]["default_root_dir"] = "runs/x"
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = "runs/x/checkpoints"
    config["data"] |= {"train_files": "train.jsonl", "cache_dir": ".lrsa_cache"}
    for section, key in (("data", "packing"), ("data", "num_workers"), ("model", "rope_parameters")):
        del config[section][key]
    del config["model"]["attention"]["init_args"]["v_weight"]


@pytest.mark.parametrize("by", ["its config", "the command line"])
def test_a_run_of_an_older_version_resumes(two_steps, by):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    given = ["fit", "--config=runs/x/config.yaml"] if by == "its config" else command(two_steps)
    main([*given, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert list(losses()) == [1, 2, 3]


def test_a_new_key_that_is_not_at_its_default_is_a_difference(two_steps, capsys):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    options = {"data.template": "chatml", "model.attention.v_weight": "0.5", "ckpt_path": "last"}
    error = refusal(capsys, command({**two_steps, **options}))
    assert "data.template: auto -> chatml" in error
    assert "model.attention.init_args.v_weight: 1.0 -> 0.5" in error


def test_a_new_argument_of_an_attention_has_the_default_of_its_class(tmp_path):
    def vanilla(**arguments) -> str:
        attention = {"class_path": "lrsa_lightning.attention.Vanilla", "init_args": arguments}
        return yaml.safe_dump({"model": {"attention": attention, "lr": 1.0}})

    (tmp_path / "config.yaml").write_text(vanilla())
    check_resume(tmp_path, vanilla(implementation="sdpa"))
    with pytest.raises(InputError, match="implementation: sdpa -> eager"):
        check_resume(tmp_path, vanilla(implementation="eager"))


def test_an_older_runs_folders_move_with_it(two_steps, tmp_path, monkeypatch):
    rewrite(RUN / "config.yaml", as_saved_by_an_older_version)
    RUN.rename("y")
    main(["fit", "--config=y/config.yaml", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert Path("y/checkpoints/step=3.ckpt").exists()
    assert not RUN.exists()
