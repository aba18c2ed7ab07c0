"""The command `lrsa`: LightningCLI with our module and datamodule, a run directory and a checkpoint policy."""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.callbacks import (
    EndTogether,
    OutOfMemoryAdvice,
    ResumedHistory,
    SaveConfig,
    StepProgress,
    StopOnSignal,
)
from lrsa_lightning.callbacks.save_config import dump
from lrsa_lightning.callbacks.stop_on_signal import Stopped
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.npu import resolve_auto
from lrsa_lightning.rank_guard import RankGuard
from lrsa_lightning.resume_guard import ResumeGuard
from lrsa_lightning.run_directory import RunDirectory

log = logging.getLogger(__name__)
# Calls of functions that are deprecated in the newest releases alone, and a datamodule without validation files.
_NOISE = (
    "'set_vital' is deprecated",
    ".*LeafSpec.* is deprecated",
    r"\s*``(instantiate_classes|enable_path)``",
    r"\s*By default only one JsonargparseDeprecationWarning",
    "Total length of `list` across ranks is zero",
)


class Parser(LightningArgumentParser):
    """Prints an error alone, without the pages of usage, and names the attention modes there are."""

    def print_usage(self, file=None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)

    def error(self, message: str, ex: Exception | None = None):
        if "model.attention" in message:
            message += "\n  Attention modes: LRSA, Vanilla, the class_path of your own; files: configs/attention/*.yaml"
        super().error(message, ex)


class LRSACLI(LightningCLI):
    """`lrsa {fit,validate,test} --config FILE ...`; see configs/ for files and README for examples."""

    _checkpoint: Path | None = None
    _allows_mismatch = False

    def __init__(self, args: list[str] | None = None, run: bool = True):
        """
        Args:
            args: command line; that of the process when None.
            run: False only builds module, datamodule and trainer.
        """
        defaults = {"default_config_files": [str(CONFIG_DIR / "base.yaml")]}
        parser_kwargs = dict.fromkeys(self.subcommands(), defaults) if run else defaults
        super().__init__(
            LongContextModule,
            LongContextDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=42,  # Lightning's default is a random seed: sweeps would compare noise
            parser_kwargs={"parser_mode": "omegaconf+", **parser_kwargs},
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser) -> None:
        parser.add_argument(
            "--run_name", type=str | None, default=None, help="Name of the run; mode and time when not given."
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--require_checkpoint",
            type=bool,
            default=False,
            help="Fail when --ckpt_path last finds no checkpoint. Otherwise the run starts, so that the same command "
            "line starts a job and goes on with it whenever the scheduler queues it again.",
        )
        parser.add_argument(
            "--allow_mismatch",
            type=bool,
            default=False,
            help="Resume although attention, model, data, sequence length or seed are not those of the run.",
        )
        # Plain: the parser's own type of one key has no place in a configuration under another.
        parser.link_arguments("data.seq_len", "model.seq_len", compute_fn=int)
        parser.link_arguments("model.name_or_path", "data.model_name_or_path")
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """Overrides Lightning's, which lets a checkpoint's hyperparameters win over the command line."""

    def before_instantiate_classes(self) -> None:
        """Settles the run directory, everything that lies in it and the checkpoint, before anything costs time."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        resolve_auto(config.trainer)
        directory = RunDirectory.of(config)
        # What is filled in below, such as a new Weights & Biases id, is each process's own.
        self._asked = config.clone()
        directory.fill_in(config)
        if self.subcommand:
            self._checkpoint = directory.checkpoint(config.get("ckpt_path"))
            check_found(config, self._checkpoint, self.subcommand)
        if self.subcommand == "fit":
            if config.ckpt_path is None:
                directory.check_free()
            self._guard(config, directory)

    def _guard(self, config, directory: RunDirectory) -> None:
        allow, config.allow_mismatch, config.require_checkpoint = config.allow_mismatch, False, False
        self._allows_mismatch = allow
        if self._checkpoint is not None:
            # A checkpoint of another run is compared with that one's configuration.
            ResumeGuard(directory.of_checkpoint(self._checkpoint)).check(dump(self._parser("fit"), config), allow)

    def instantiate_trainer(self, **kwargs) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit":
            self.datamodule.resumes_from = self._checkpoint
            self.datamodule.allow_changed_files = self._allows_mismatch
        resumes = self._checkpoint is not None
        trainer.callbacks[:0] = [StopOnSignal(), ResumedHistory(resumes=resumes), OutOfMemoryAdvice()]
        trainer.callbacks.append(EndTogether())
        if self.subcommand and trainer.world_size > 1:
            asked = dump(self._parser(self.subcommand), self._asked)
            RankGuard(asked, self._checkpoint).watch(trainer.strategy)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Adds our progress to callbacks that have none: Lightning's own counts micro-batches against steps."""
        given = config["callbacks"] or []
        has_bar = any(isinstance(callback, ProgressBar) for callback in (given if isinstance(given, list) else [given]))
        progress = [] if has_bar or config["enable_progress_bar"] is False else [StepProgress()]
        return super()._instantiate_trainer(config, [*callbacks, *progress])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Gives the trainer the file that `last` and `best` mean; the saved configuration keeps the word."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | {"ckpt_path": str(self._checkpoint) if self._checkpoint is not None else None}


def check_found(config, checkpoint: Path | None, subcommand: str) -> None:
    """Whether a command may go on without the checkpoint it was given.

    Raises:
        InputError: it was required, or there is nothing to validate.
    """
    if checkpoint is not None:
        return
    if config.require_checkpoint or (config.ckpt_path is not None and subcommand != "fit"):
        given = f"--ckpt_path {config.ckpt_path}" if config.ckpt_path else "without --ckpt_path"
        where = f"{config.runs_dir}/{config.run_name}"
        raise InputError(f"there is no checkpoint to go on from in {where} ({given}): nothing was started")
    if config.ckpt_path is not None:
        log.warning("--ckpt_path %s: there is no checkpoint yet, the run starts from the beginning", config.ckpt_path)


def report_input_errors(command: Callable) -> Callable:
    """A command whose `InputError` is one line on stderr and exit status 2."""

    @wraps(command)
    def reporting(*args, **kwargs):
        _quieten()
        try:
            return command(*args, **kwargs)
        except InputError as error:
            print(f"lrsa: error: {error}", file=sys.stderr)
            sys.exit(2)
        except Stopped as stopped:
            if rank_zero_only.rank == 0:  # the others have stopped for the same reason
                print(f"lrsa: {stopped}", file=sys.stderr)
            raise

    return reporting


@report_input_errors
def main(args: list[str] | None = None) -> None:
    """Entry point of the console script."""
    LRSACLI(args)


def _quieten() -> None:
    """Our own log lines on, others' advertisements and deprecations off."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("lrsa_lightning").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    main()
