"""No process of a run outlives an error of the first one."""

import subprocess

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lrsa_lightning.callbacks.first_step import has_begun

_GRACE_S = 10


class EndTogether(Callback):
    """Ends the processes that Lightning started when the one that started them fails.

    Lightning sees to the other direction alone: the first process is killed, within seconds, when one of the others
    ends with an error. They would wait in a collective for the first one until its timeout, and hold their devices.
    Last of all callbacks, so that what the others save together is saved.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher):
            return
        for process in launcher.procs:
            try:
                # Most errors are all processes' own. Behind the first step each saves and tells its own.
                process.wait(_GRACE_S if has_begun() else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
