"""The demo's sweeps for real, a few steps each: by `lrsa sweep`, and by the real `wandb agent`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lrsa_lightning.callbacks import RulerEval
from lrsa_lightning.cli import main
from tests.sweep.agent_server import AgentServer

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
MODES = ["configs/attention/vanilla.yaml", "configs/sweeps/demo/lrsa.yaml"]


def few_steps(name: str, steps: int = 3) -> dict:
    """A sweep of configs/sweeps that trains for a few steps and scores few samples."""
    content = yaml.safe_load((ROOT / f"configs/sweeps/{name}.yaml").read_text())
    content["command"] = [word for word in content["command"] if not word.startswith("--trainer.max_steps")]
    demo = content["command"].index("configs/demo.yaml")
    content["command"][demo + 1 : demo + 1] = [f"--trainer.max_steps={steps}", "--config", "FEW"]
    return content


@pytest.fixture
def few_samples(tmp_path) -> Path:
    """A configuration with RULER of two samples and a checkpoint every step."""
    ruler = {"tasks": ["niah_single_1"], "num_samples": 2, "every_n_steps": 100}
    callbacks = [
        {"class_path": "lrsa_lightning.callbacks.Checkpoints", "init_args": {"every_n_steps": 1}},
        {"class_path": "lrsa_lightning.callbacks.RulerEval", "init_args": ruler},
        {"class_path": "lrsa_lightning.callbacks.LossCurve"},
    ]
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return file


def write(content: dict, few_samples: Path, *further: str) -> Path:
    words = [str(few_samples) if word == "FEW" else word for word in content["command"]]
    words[-1:-1] = further
    file = few_samples.parent / "sweep.yaml"
    file.write_text(yaml.safe_dump(content | {"command": words}, sort_keys=False))
    return file


def sweep_local(file: Path, runs: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "scripts/sweep_local.py", str(file), "--runs_dir", str(runs)],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def logs(runs: Path) -> str:
    return "\n".join(file.read_text()[-3000:] for file in runs.glob("cells/*.log"))


@pytest.mark.slow
def test_two_cells_of_the_demos_sweep(few_samples, tmp_path):
    content, runs = few_steps("demo"), tmp_path / "runs"
    content["parameters"]["model.attention"]["values"] = MODES
    file = write(content, few_samples)
    done = sweep_local(file, runs)
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    assert re.search(r"The trained cells .* same order, [1-9]\d+ tokens each", done.stdout), done.stdout
    for mode, attention in (("vanilla", "Vanilla"), ("lrsa", "LRSA")):
        config = yaml.safe_load((runs / mode / "config.yaml").read_text())
        assert config["model"]["attention"]["class_path"].endswith(attention)
        assert re.search(rf"^{mode}  .* finished$", done.stdout, re.MULTILINE)
    assert (runs / "report/fig2_loss.png").exists()
    assert "RULER average" not in done.stdout
    # Interrupted after the first step, the second cell resumes and ends with the same losses.
    metrics = (runs / "lrsa/metrics.jsonl").read_text()
    record = runs / "cells/lrsa.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": -9}))
    kept = sorted((runs / "lrsa/checkpoints").glob("step*.ckpt"))
    assert len(kept) == 3
    for checkpoint in kept[1:]:
        checkpoint.unlink()
    (runs / "lrsa/checkpoints/last.ckpt").unlink()
    again = sweep_local(file, runs)
    assert again.returncode == 0, again.stdout + again.stderr + logs(runs)
    assert "vanilla: finished already" in again.stdout
    assert "lrsa: resumes" in again.stdout
    assert losses(metrics) == losses((runs / "lrsa/metrics.jsonl").read_text())


def losses(metrics: str) -> dict[int, float]:
    rows = [json.loads(line) for line in metrics.splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
def test_the_papers_comparison_on_the_demos_model(few_samples, tmp_path):
    runs = tmp_path / "runs"
    done = sweep_local(write(few_steps("compare_demo"), few_samples), runs)
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    table = (runs / "report/table1.md").read_text()
    for name in ("compare_base", "compare_vanilla", "compare_lrsa"):
        for budget in ("1x", "2x", "4x"):
            assert f"| {name} | {budget} |" in table
    assert not losses((runs / "compare_base/metrics.jsonl").read_text())
    assert list(losses((runs / "compare_lrsa/metrics.jsonl").read_text())) == [1, 2, 3]
    assert "tokens each" in done.stdout


@pytest.mark.slow
def test_the_real_agent_runs_two_cells(few_samples, tmp_path):
    content, runs = few_steps("demo"), tmp_path / "runs"
    content = yaml.safe_load(write(content, few_samples, f"--runs_dir={runs}").read_text())
    cells = {f"cell{number}": {"seed_everything": 7, "model.attention": mode} for number, mode in enumerate(MODES)}
    with AgentServer(content, cells) as server:
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
            "WANDB_DIR": str(tmp_path),
        }
        done = subprocess.run(
            [BIN / "wandb", "agent", "me/lrsa_lightning/sweep123"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert server.given == ["cell0", "cell1"]
    assert not server.unknown
    for run_id, attention in (("cell0", "Vanilla"), ("cell1", "LRSA")):
        run = runs / run_id
        assert (run / "wandb_id").read_text() == run_id, output
        assert list(run.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["attention"]["class_path"].endswith(attention)
        assert config["seed_everything"] == 7
        assert list(losses((run / "metrics.jsonl").read_text())) == [1, 2, 3]


def test_a_run_of_an_agent_has_the_agents_name(arguments, in_tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "abc12345")
    del arguments["run_name"]
    main(["fit", *(f"--{key}={value}" for key, value in (arguments | {"trainer.max_steps": "1"}).items())])
    assert Path("runs/abc12345/config.yaml").exists()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_model_that_is_not_trained_is_scored_once(steps, arguments, in_tmp_path, monkeypatch):
    checks = []

    def check(self, trainer, *_, **__):
        self._checked_step = trainer.global_step
        checks.append(trainer.global_step)

    monkeypatch.setattr(RulerEval, "setup", lambda *_, **__: None)
    monkeypatch.setattr(RulerEval, "_check", check)
    callbacks = [{"class_path": "lrsa_lightning.callbacks.RulerEval"}]
    own = {"trainer.max_steps": str(steps), "trainer.callbacks": json.dumps(callbacks)}
    main(["fit", *(f"--{key}={value}" for key, value in (arguments | own).items())])
    assert checks == [0, 1][: steps + 1]
