"""The base model of a comparison: scored as it is."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks import RulerEval


class ScoreUntrained(Callback):
    """Lets RulerEval score a model that is not trained: with `trainer.max_steps: 0` no training hook is ever called."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps == 0:
            for callback in trainer.callbacks:
                if isinstance(callback, RulerEval):
                    callback.on_train_start(trainer, pl_module)
