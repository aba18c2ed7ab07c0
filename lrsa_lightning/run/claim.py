"""A command's claim on its run directory, and the run name that it passes to further processes."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from lrsa_lightning.files.folder_lock import FolderLock
from lrsa_lightning.run.rank_guard import once_connected
from lrsa_lightning.run.start import RunStart

RUN_NAME = "LRSA_RUN_NAME"


@contextmanager
def claimed(folder: Path) -> Iterator[RunStart]:
    """Keeps other processes out of a run directory, from before its first file until the command ends.

    Yields the start of the run, which is undone if the command fails before the first optimizer step.

    Raises:
        InputError: another process writes there, or the folder cannot be written.
    """
    lock = FolderLock(folder, "run", "wait until it ends or stop it, or give another --run_name")
    lock.acquire()
    start, logged_before = RunStart(folder), _wandb_run()
    try:
        try:
            yield start
        except BaseException as error:
            has_status = isinstance(error, SystemExit) and isinstance(error.code, int)
            _finish_wandb(logged_before, error.code if has_status else 1)
            if start.is_pending:
                start.undo()
            raise
        _finish_wandb(logged_before, 0)
        start.succeed()
    finally:
        lock.release()


@contextmanager
def run_name_for_processes(run_name: str, strategy: Strategy, hide: Callable[[str], str]) -> Iterator[None]:
    """Puts the run's name into the environment while Lightning starts the processes of further devices.

    Lightning starts them with this process's command line and environment. Once they run, the environment is restored.
    Loggers save the command line, so ``hide`` then takes out its secrets until the command ends.
    """
    named, words = os.environ.get(RUN_NAME), list(sys.argv)

    def restore(shown: Iterable[str]) -> None:
        if named is None:
            os.environ.pop(RUN_NAME, None)
        else:
            os.environ[RUN_NAME] = named
        sys.argv[:] = shown

    once_connected(strategy, lambda: restore(map(hide, words)))
    os.environ[RUN_NAME] = run_name
    try:
        yield
    finally:
        restore(words)


def _wandb_run():
    return getattr(sys.modules.get("wandb"), "run", None)


def _finish_wandb(earlier, status: int) -> None:
    """Ends the command's W&B run, unless it is an earlier one; the process's next command would continue it."""
    if (run := _wandb_run()) is not None and run is not earlier:
        run.finish(exit_code=status)
