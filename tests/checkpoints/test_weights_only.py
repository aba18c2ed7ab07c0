"""No file that is loaded runs code: every call says so, and a pickle that would touch a file leaves it alone."""

import ast
import os
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrsa_lightning.checkpoints.atomic_files import AtomicFiles
from lrsa_lightning.checkpoints.last import ZERO_CLASSES, fault_of, find_last, read_index, step_of
from lrsa_lightning.cli import main
from lrsa_lightning.errors import InputError
from lrsa_lightning.trained_model import load_checkpoint
from tests.conftest import TINY_MODEL
from tests.runs import command

ROOT = Path(__file__).parents[2]
FOLDERS = ("lrsa_lightning", "callbacks", "scripts")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
RUNS = ("fit", "validate", "test")


def calls(tree: ast.AST) -> list[tuple[ast.Call, str]]:
    """Calls of methods and of module functions, each with its dotted name."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [(call, ast.unparse(call.func)) for call in found]


def says_so(call: ast.Call) -> bool:
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    return ast.unparse(said.get("weights_only", ast.Constant(None))) == "True"


def test_every_load_says_weights_only():
    loads, others = [], []
    for path in SOURCES:
        for call, name in calls(ast.parse(path.read_text())):
            place = f"{path.relative_to(ROOT)}:{call.lineno}"
            if name in ("torch.load", "super().load_checkpoint"):
                loads.append(place)
                assert says_so(call), place
            if name.startswith("pickle.load") or name.endswith("add_safe_globals"):
                others.append(place)
            if name.split(".")[-1] in RUNS and "ckpt_path" in {keyword.arg for keyword in call.keywords}:
                assert says_so(call), place
    assert len(loads) >= 5
    assert not others


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture(params=[False, True], ids=["as it is", "switched off"])
def touched(request, tmp_path, monkeypatch):
    """The file that must not exist afterwards, also if the environment makes torch trust files."""
    if request.param:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "touched"
    yield path
    assert not path.exists()


@pytest.fixture
def evil(tmp_path, touched) -> Path:
    """A checkpoint in a run directory."""
    path = tmp_path / "runs" / "x" / "checkpoints" / "step=2.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": 2, "optimizer_states": [], "state_dict": {}, "callbacks": Touches(touched)}, path)
    return path


def test_the_test_pickle_does_run_code(evil, tmp_path):
    torch.load(evil, weights_only=False)
    (tmp_path / "touched").unlink()


def test_our_loaders_run_no_code_of_a_file(evil):
    (evil.parent.parent / "config.yaml").write_text(
        f"model: {{name_or_path: null, rope_parameters: null, from_config: {TINY_MODEL | {'vocab_size': 9}}}}\n"
        "data: {source: auto, tokenizer: null}\n"
    )
    assert read_index(evil) is None
    assert step_of(evil) is None
    assert fault_of(evil)
    assert find_last(evil.parent).path is None
    for load in (load_checkpoint, AtomicFiles().load_checkpoint):
        with pytest.raises(Exception, match=r"(?i)is complete, but holds|weights only"):
            load(evil)
    with pytest.raises(Exception, match=r"(?i)weights only"):
        AtomicFiles().load_checkpoint(evil, weights_only=False)


def test_fsdp_runs_no_code_of_a_file(evil, monkeypatch):
    """Lightning omits weights_only when it loads a checkpoint after the set-up."""
    from lightning.pytorch.strategies import model_parallel

    from lrsa_lightning.distributed import SPModelParallelStrategy

    def load(path, weights_only, **_):
        return torch.load(path, weights_only=weights_only)

    monkeypatch.setattr(model_parallel, "_load_checkpoint", load)
    strategy = SPModelParallelStrategy()
    strategy.connect(torch.nn.Linear(1, 1))
    monkeypatch.setattr(SPModelParallelStrategy, "lightning_module", SimpleNamespace(strict_loading=True))
    monkeypatch.setattr(SPModelParallelStrategy, "broadcast", lambda self, value: value)
    with pytest.raises(Exception, match=r"(?i)weights only"):
        strategy.load_checkpoint(evil)


def test_deepspeed_runs_no_code_of_a_file(evil, touched):
    from lrsa_lightning.distributed import zero_files

    folder = touched.parent / "step=4.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        os.link(evil, folder / "checkpoint" / name)
    assert fault_of(folder)
    for load in (zero_files.read_client_state, zero_files.read_weights):
        with pytest.raises(Exception, match=r"(?i)weights only"):
            load(folder)
    with zero_files.safe_loading(), pytest.raises(Exception, match=r"(?i)weights only"):
        zero_files.ShardFiles().load(str(folder / "checkpoint" / name))
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in zero_files._CLASSES} == {*ZERO_CLASSES}


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize(("subcommand", "path"), [("fit", "last"), ("fit", None), ("validate", None)])
def test_the_command_refuses_a_file_with_code(evil, arguments, capsys, subcommand, path):
    arguments["ckpt_path"] = path or str(evil)
    with pytest.raises(SystemExit) as caught:
        main(command(arguments, subcommand))
    assert caught.value.code == 2
    assert "is complete, but holds posix.system" in capsys.readouterr().err


@pytest.mark.usefixtures("in_tmp_path")
def test_the_trainer_gets_weights_only(arguments, monkeypatch):
    from lightning import Trainer

    told = []

    @wraps(Trainer.fit)  # the command's options are made of its signature
    def fit(self, *_, weights_only=None, **__):
        told.append(weights_only)

    monkeypatch.setattr(Trainer, "fit", fit)
    main(command(arguments))
    main(command({**arguments, "weights_only": "false"}))
    assert told == [True, True]


def test_a_folder_is_refused_by_an_input_error(evil):
    with pytest.raises(InputError, match="ZeRO"):
        AtomicFiles().load_checkpoint(evil.parent)
