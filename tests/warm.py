"""The command in processes forked from one that has imported everything: imports are most of a tiny run's time."""

import importlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# A run imports most of these only when it needs them, so each process anew if they are not there before the fork.
IMPORTS = (
    "lrsa_lightning.cli",
    "lrsa_lightning.pretrained",
    "datasets",
    "matplotlib.pyplot",
    "omegaconf",
    "setuptools",
    "wandb",
    "transformers.models.qwen2.modeling_qwen2",
    "torch.distributed.fsdp",
    "torch.profiler",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
)


def up() -> None:
    """Imports here what a run needs, before the caller forks."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in IMPORTS:
        importlib.import_module(name)


@dataclass
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it said."""

    status: int
    out: str
    err: str


class Run:
    """`lrsa` with these arguments, in this folder and environment but for what is given; started at once."""

    def __init__(self, arguments: list[str], session: bool = False, **environment: str):
        """
        Args:
            arguments: of the command.
            session: as the first process of a session and group of its own.
            **environment: variables that differ from the ones of this process.
        """
        self._said = tempfile.TemporaryDirectory()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*IMPORTS])
        given = (arguments, {**os.environ, **environment}, Path.cwd(), Path(self._said.name), session)
        self.process = context.Process(target=_lrsa, args=given)
        self.process.start()

    def wait(self, timeout: float) -> Ended:
        """
        Raises:
            TimeoutError: it hangs; it is left running.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s\n{self._text('err')}")
        return Ended(self.process.exitcode, self._text("out"), self._text("err"))

    def kill(self) -> None:
        self.process.kill()

    def _text(self, stream: str) -> str:
        file = Path(self._said.name) / stream
        return file.read_text() if file.exists() else ""


def _lrsa(arguments: list[str], environment: dict[str, str], folder: Path, said: Path, session: bool) -> None:
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    from lrsa_lightning.cli import main

    if session:
        os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read when it was imported
    torch.set_num_threads(1)  # processes that spin for the same cores take minutes
    sys.argv = ["lrsa", *arguments]
    main(arguments)
