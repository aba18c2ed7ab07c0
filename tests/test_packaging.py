"""`callbacks/` and `configs/` install inside the package, from a wheel and in an editable install."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from lrsa_lightning.cli import main
from tests.runs import callback, command

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
PROBE = (
    "import lrsa_lightning.callbacks as c, lrsa_lightning.configs as d, lrsa_lightning.report as r, pathlib;"
    "assert pathlib.Path(r.__file__).with_name('page.html').exists();"
    "from importlib import metadata; import lrsa_lightning.model_folder as m; home = pathlib.Path(m.__file__).parent;"
    "assert all((home / name).exists() for name in ('card.md.jinja', 'custom_generate/generate.py'));"
    "groups = ('lm_eval.models', 'vllm.general_plugins');"
    "assert all('lrsa' in metadata.entry_points(group=group).names for group in groups);"
    "print(c.LossCurve.__module__, c.__file__, *(p.relative_to(d.CONFIG_DIR) for p in d.CONFIG_DIR.rglob('*.yaml')))"
)


def test_every_package_is_installed():
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    found = {file.parent.relative_to(ROOT) for file in (ROOT / "lrsa_lightning").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in found} <= {*re.findall(r'"([\w.]+)"', listed)}


def install(folder: Path, target: list[str]) -> Path:
    """Makes an environment with this package alone. Returns the folder of its programs."""
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]  # an own pip takes longer than the rest
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *target], check=True)
    return folder / "bin"


def environment() -> dict[str, str]:
    """Dependencies from the environment of the tests; an editable install there is not seen through PYTHONPATH."""
    return {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_install(editable, tmp_path):
    python = install(tmp_path / "venv", ["-e", str(ROOT)] if editable else [str(ROOT)]) / "python"
    answer = subprocess.run(
        [python, "-c", PROBE], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment()
    ).stdout.split()
    home = ROOT / "callbacks" if editable else tmp_path / "venv"
    assert answer[0] == "lrsa_lightning.callbacks.loss_curve"
    assert Path(answer[1]).is_relative_to(home)
    assert {Path(name) for name in answer[2:]} == {p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml")}
    assert (tmp_path / "venv" / "bin" / "lrsa").exists()


@pytest.mark.slow
def test_the_wheel_has_every_command(arguments, in_tmp_path, tmp_path):
    """A run is exported and scored outside the repository, by the installed command alone."""
    main(command({**arguments, "trainer.max_steps": "1", "trainer.callbacks": json.dumps([callback("Checkpoints")])}))
    lrsa = install(tmp_path / "venv", [str(ROOT)]) / "lrsa"
    scored = ["--tasks", "niah_single_1", "--lengths", "640", "--num_samples", "1", "--budgets", "0.5"]
    every = "from lrsa_lightning.commands import COMMANDS\nfor command in COMMANDS.values(): command.load()"
    lines = [[lrsa, "--help"], [lrsa.with_name("python"), "-c", every]]
    lines += [[lrsa, "export", "runs/x", "--output", "exported"], [lrsa, "eval", "--model", "exported", *scored]]
    for line in lines:
        done = subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "niah_single_1" in done.stdout
    assert list(Path("exported").glob("*.safetensors"))
