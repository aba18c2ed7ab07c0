"""A command's claim on its run directory, and the run name that it passes to further processes."""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from lrsa_lightning.folder_lock import FolderLock
from lrsa_lightning.run_start import RunStart

RUN_NAME = "LRSA_RUN_NAME"


class RunClaim:
    """A process's exclusive hold on a run directory, from before its first file until the command ends.

    Attributes:
        start: of a new run; undone if the command fails before the first optimizer step.
    """

    def __init__(self, folder: Path):
        """
        Args:
            folder: the run directory; it need not exist yet.
        """
        self.start = RunStart(folder)
        self._lock = FolderLock(folder, "run", "wait until it ends or stop it, or give another --run_name")
        self._logged_before = None

    def __enter__(self) -> "RunClaim":
        """
        Raises:
            InputError: another process writes there, or the folder cannot be written.
        """
        self._lock.acquire()
        self._logged_before = _wandb_run()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        try:
            # Otherwise the next command of this process would continue the same W&B run.
            if (run := _wandb_run()) is not None and run is not self._logged_before:
                run.finish(exit_code=0 if error is None else _status(error))
            if error is None:
                self.start.succeed()
            elif self.start.is_pending:
                self.start.undo()
        finally:
            self._lock.release()


@contextmanager
def run_name_for_processes(run_name: str, strategy: Strategy, hide: Callable[[str], str]):
    """Puts the run's name into the environment while Lightning starts the processes of further devices.

    Lightning starts them with this process's command line and environment. Once they run, the environment is restored.
    Loggers save the command line, so its secrets are then hidden until the command ends.

    Args:
        run_name: of this run.
        strategy: starts the processes, in `setup_environment`; Lightning has no hook for that moment.
        hide: takes the secrets out of a text.
    """
    named, words = os.environ.get(RUN_NAME), list(sys.argv)

    def restore_name() -> None:
        if named is None:
            os.environ.pop(RUN_NAME, None)
        else:
            os.environ[RUN_NAME] = named

    setup_environment = strategy.setup_environment

    def setup_then_restore() -> None:
        setup_environment()
        restore_name()
        sys.argv[:] = map(hide, words)

    strategy.setup_environment = setup_then_restore
    os.environ[RUN_NAME] = run_name
    try:
        yield
    finally:
        restore_name()
        sys.argv[:] = words


def _wandb_run():
    return getattr(sys.modules.get("wandb"), "run", None)


def _status(error: BaseException) -> int:
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
