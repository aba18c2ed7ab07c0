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
    "lrsa_lightning.commands.training",
    "lrsa_lightning.pretrained.decoder",
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
        self._streams = [Path(self._said.name) / name for name in ("out", "err")]
        for file in self._streams:
            file.touch()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*IMPORTS])
        place = ({**os.environ, **environment}, Path.cwd(), self._streams)
        given = (arguments, *place, session, multiprocessing.get_start_method())
        self.process = context.Process(target=_lrsa, args=given)
        self.process.start()

    def wait(self, timeout: float) -> Ended:
        """
        Raises:
            TimeoutError: it hangs; it is killed.
        """
        self.process.join(timeout)
        hangs = self.process.exitcode is None
        self.kill()
        out, err = (file.read_text() for file in self._streams)
        if hangs:
            raise TimeoutError(f"still running after {timeout} s\n{err}")
        self._said.cleanup()
        return Ended(self.process.exitcode, out, err)

    def kill(self) -> None:
        """Nothing happens to one that has ended."""
        self.process.kill()


def _lrsa(
    arguments: list[str], environment: dict[str, str], folder: Path, streams: list[Path], session: bool, method: str
) -> None:
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    from lrsa_lightning.cli import main

    multiprocessing.set_start_method(method, force=True)  # a process starts others as it was started itself
    if session:
        os.setsid()
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read when it was imported
    torch.set_num_threads(1)  # processes that spin for the same cores take minutes
    sys.argv = ["lrsa", *arguments]
    main(arguments)
