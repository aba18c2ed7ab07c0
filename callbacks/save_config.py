"""Saves the resolved configuration in the run directory and shows it in Weights & Biases."""

from pathlib import Path

import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lrsa_lightning.run_directory import WANDB_ID


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml``, for a resumed run ``config-1.yaml`` and so on: an earlier one is never overwritten."""

    def save_config(self, trainer, pl_module, stage: str) -> None:
        if stage != "fit":
            return
        directory = Path(trainer.default_root_dir)
        directory.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False, skip_link_targets=True)
        path, number = directory / "config.yaml", 0
        while path.exists():
            number += 1
            path = directory / f"config-{number}.yaml"
        path.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                (directory / WANDB_ID).write_text(logger.experiment.id, encoding="utf-8")
                logger.experiment.config.update(yaml.safe_load(text), allow_val_change=True)
