"""Saves the resolved configuration in the run directory and shows it in Weights & Biases."""

from pathlib import Path

import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.run.config import Changes, RunConfig, describe, newest_config
from lrsa_lightning.run.directory import WANDB_ID
from lrsa_lightning.run.saved_config import MADE_TOKENIZER, dump
from lrsa_lightning.versions import versions


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` and ``versions.yaml``; a resumed run writes ``config-1.yaml`` and so on.

    ``config-1.diff`` lists what changed since the earlier configuration. Earlier files are never overwritten. It saves
    the requested configuration, without the paths in the run directory: that may be moved.
    """

    def __init__(self, parser, config, requested=None, **kwargs):
        super().__init__(parser, config, **kwargs)
        self.requested = config if requested is None else requested

    def save_config(self, trainer, pl_module, stage: str) -> None:
        if stage != "fit":
            return
        directory = Path(trainer.default_root_dir)
        directory.mkdir(parents=True, exist_ok=True)
        text = dump(self.parser, self.requested)
        save(directory, text)
        if getattr(trainer.datamodule, "source", None) == "demo":
            trainer.datamodule.tokenizer.save_pretrained(directory / MADE_TOKENIZER)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                (directory / WANDB_ID).write_text(logger.experiment.id, encoding="utf-8")
                logger.experiment.config.update(yaml.safe_load(text), allow_val_change=True)


def save(directory: Path, text: str) -> None:
    """Writes configuration and versions beside the earlier ones, and the changes since the newest of them."""
    earlier = newest_config(directory)
    number = 0 if earlier is None else int(earlier.stem.partition("-")[2] or 0) + 1
    suffix = f"-{number}" if number else ""
    now = yaml.safe_dump(versions(), sort_keys=False)
    if earlier is not None:
        before = earlier.with_name(earlier.name.replace("config", "versions"))
        changes = _changes(earlier.read_text(encoding="utf-8"), text)
        changes |= _changes(before.read_text(encoding="utf-8") if before.exists() else "{}", now)
        write_text(directory / f"config{suffix}.diff", describe(changes) + "\n" if changes else "nothing changed\n")
    write_text(directory / f"versions{suffix}.yaml", now)
    write_text(directory / f"config{suffix}.yaml", text)


def _changes(before: str, after: str) -> Changes:
    return RunConfig(yaml.safe_load(before)).changes(RunConfig(yaml.safe_load(after)))
