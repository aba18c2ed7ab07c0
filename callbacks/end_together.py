"""No process of a run outlives an error of the first one."""

import subprocess

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lrsa_lightning.library_errors import computing_has_begun

_GRACE_S = 10


class EndTogether(Callback):
    """Ends the processes that Lightning started when the first process, which started them, fails.

    Lightning covers only the other direction: it kills the first process when another one fails. Without this callback
    the others would wait for the first one in a collective until its timeout, and hold their devices. It comes last of
    all callbacks, so that what the processes save together is saved.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher):
            return
        for process in launcher.procs:
            try:
                # All processes have most errors in common. After the first step each saves and reports its own.
                process.wait(_GRACE_S if computing_has_begun.get() else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
