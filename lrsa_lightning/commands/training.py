"""`lrsa fit` and `lrsa validate`: LightningCLI with our module, datamodule, run directory and checkpoint policy."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI

from lrsa_lightning import npu
from lrsa_lightning.callbacks import (
    EndTogether,
    OutOfMemoryAdvice,
    ResumedHistory,
    RunBegins,
    SaveConfig,
    StepProgress,
    StopOnSignal,
)
from lrsa_lightning.callbacks.run_begins import FirstStep
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.parser import PARSER_MODE, Parser
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.commands.changed_callbacks import change_callbacks
from lrsa_lightning.commands.loggers import add_metrics_file, leave_out_wandb, without_missing_wandb
from lrsa_lightning.commands.run_summary import RunSummary
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.distributed import choice
from lrsa_lightning.errors import InputError
from lrsa_lightning.finished_run import FinishedRun
from lrsa_lightning.library_errors import reading
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan.at_start import announce
from lrsa_lightning.run.claim import claimed, run_name_for_processes
from lrsa_lightning.run.directory import RunDirectory, is_global_first
from lrsa_lightning.run.rank_guard import compare_ranks
from lrsa_lightning.run.resume_guard import check_resume
from lrsa_lightning.run.saved_config import contents, dump
from lrsa_lightning.run.secret_values import Secrets
from lrsa_lightning.run.start import RunStart
from lrsa_lightning.trained_model import read_state
from lrsa_lightning.trainer import RangedTrainer

log = logging.getLogger(__name__)


class LRSACLI(LightningCLI):
    """`lrsa {fit,validate} --config FILE ...`; see configs/ for files and README for examples."""

    _checkpoint: Path | None = None
    _start: RunStart | None = None  # in the process that writes the run's files
    _allows_mismatch = False

    def __init__(self, args: list[str] | None = None, run: bool = True, prog: str = "lrsa"):
        """
        Args:
            args: command line; that of the process when None.
            run: False only builds module, datamodule and trainer.
            prog: the command in usage and errors.
        """
        defaults = {"default_config_files": [str(CONFIG_DIR / "base.yaml")]}
        parser_kwargs = {"prog": prog, "parser_mode": PARSER_MODE}
        if run:
            parser_kwargs |= {name: {**defaults, **_about(f"{prog} {name}")} for name in self.subcommands()}
        else:
            parser_kwargs |= {**defaults, **_about(prog)}
        with ExitStack() as self._until_the_end:
            super().__init__(
                LongContextModule,
                LongContextDataModule,
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
                trainer_class=RangedTrainer,
                seed_everything_default=42,  # Lightning's default is a random seed: sweeps would compare noise
                parser_kwargs=parser_kwargs,
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
                run=run,
            )

    def add_core_arguments_to_parser(self, parser) -> None:
        """Adds model and data before the trainer, which has most of the options: help lists them in this order."""
        parser.add_lightning_class_args(LongContextModule, "model")
        parser.add_lightning_class_args(LongContextDataModule, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def add_arguments_to_parser(self, parser) -> None:
        name_help = "Name of the run; mode and time when not given."
        parser.add_argument("--run_name", type=str | None, default=None, help=name_help)
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--require_checkpoint",
            type=bool,
            default=False,
            help="Fail when --ckpt_path last finds no checkpoint. By default the run then starts: a scheduler can use "
            "the same command line to start a job and to resume it.",
        )
        parser.add_argument(
            "--allow_mismatch",
            type=bool,
            default=False,
            help="Resume although attention, model, data, sequence length or seed differ from those of the run.",
        )
        parser.add_argument(
            "--callbacks",
            type=dict[str, dict[str, Any] | None],
            default={},
            help="Changes callbacks of trainer.callbacks by name, without the list: --callbacks.ruler null leaves "
            'RulerEval out, --callbacks.Checkpoints {"every_n_steps": 100} sets arguments.',
        )
        parser.add_argument(
            "--wandb", type=bool, default=True, help="false leaves Weights & Biases out; metrics.jsonl remains."
        )
        # Plain types: the parser's own type of one key is not known in a configuration under another key.
        parser.link_arguments("data.seq_len", "model.seq_len", compute_fn=int)
        parser.link_arguments("model.name_or_path", "data.model_name_or_path")
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate")}

    def parse_arguments(self, parser, args) -> None:
        """Changes callbacks by name; raises an InputError if random, NumPy and torch do not all accept the seed."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand] if "subcommand" in self.config else self.config
        if not 0 <= (seed := config.seed_everything) < 2**32:
            raise InputError(f"seed_everything is {seed}, but must be a whole number from 0 to {2**32 - 1}")
        change_callbacks(config)
        if not config.wandb:
            leave_out_wandb(config.trainer)

    def _parse_ckpt_path(self) -> None:
        """Overrides Lightning's, which lets a checkpoint's hyperparameters override the command line."""

    def before_instantiate_classes(self) -> None:
        """Chooses the run directory, its files and the checkpoint, before anything takes time."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        choice.check_choice(config.trainer.strategy)
        if self.subcommand == "fit":
            OptimizerSettings(**vars(config.model.optimizer)).check()
        npu.resolve_auto(config.trainer)
        choice.resolve_auto(config.trainer)
        self._allows_mismatch, requires = config.allow_mismatch, config.require_checkpoint
        config.allow_mismatch = config.require_checkpoint = False
        directory = RunDirectory.of(config)
        # The saved configuration omits what fill_in adds: it follows from the directory or belongs to one process.
        self._given = self.save_config_kwargs["requested"] = config.clone()
        directory.fill_in(config)
        without_missing_wandb(config.trainer)
        if not self.subcommand:
            return
        self._find_checkpoint(config, directory, requires, warns=self.subcommand != "fit")
        directory.check_writable()
        if is_global_first():
            self._start = self._until_the_end.enter_context(claimed(directory.path))
        if self.subcommand == "fit":
            self._begin(config, directory, requires)

    def _begin(self, config, directory: RunDirectory, requires: bool) -> None:
        """Checks what a fit finds in its directory, now that no other process writes there."""
        if self._start is not None:
            self._start.undo()  # an earlier start that was killed
        self._find_checkpoint(config, directory, requires, warns=True)
        if config.ckpt_path is None:
            directory.check_free()
        if self._checkpoint is not None and not self._allows_mismatch:
            parser = self._parser("fit")
            defaults = contents(parser, parser.get_defaults())
            # A checkpoint of another run is compared with the configuration of that run.
            check_resume(directory.of_checkpoint(self._checkpoint), dump(parser, self._given), defaults)
        if self._start is not None:
            self._start.begin()

    def _find_checkpoint(self, config, directory: RunDirectory, requires: bool, warns: bool) -> None:
        """Raises an InputError if no checkpoint is found, but one is required or there is nothing to validate."""
        self._checkpoint = directory.checkpoint(config.ckpt_path, warns)
        if self._checkpoint is not None:
            return
        if requires or (config.ckpt_path is not None and self.subcommand != "fit"):
            given = f"--ckpt_path {config.ckpt_path}" if config.ckpt_path else "without --ckpt_path"
            raise InputError(f"there is no checkpoint to go on from in {directory.path} ({given}): nothing was started")
        if config.ckpt_path is not None and warns:
            log.warning("--ckpt_path %s: no checkpoint found, the run starts from the beginning", config.ckpt_path)

    def instantiate_classes(self) -> None:
        with reading("the configuration"):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Adds the callbacks that every run has, and hands the checkpoint's data progress to the datamodule."""
        with reading("trainer"):
            trainer = super().instantiate_trainer(**kwargs)
        add_metrics_file(trainer)
        resumes = self._checkpoint is not None
        if self.subcommand == "fit":
            state = read_state(self._checkpoint) if resumes else {}
            self.datamodule.trained_on = state.get(type(self.datamodule).__qualname__)
            self.datamodule.allow_changed_files = self._allows_mismatch
        self._summary = RunSummary()
        own = [FirstStep(), StopOnSignal(), ResumedHistory(resumes=resumes), OutOfMemoryAdvice(), self._summary]
        trainer.callbacks[:0] = own
        if self._start is not None:
            trainer.callbacks.insert(0, RunBegins(self._start))
        trainer.callbacks.append(EndTogether())
        if self.subcommand and trainer.world_size > 1:
            given = dump(self._parser(self.subcommand), self._given)
            compare_ranks(trainer.strategy, given, self._checkpoint)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Adds our progress line if no progress bar is given: Lightning's own counts micro-batches as steps."""
        given = config["callbacks"] or []
        has_bar = any(isinstance(callback, ProgressBar) for callback in (given if isinstance(given, list) else [given]))
        progress = [] if has_bar or config["enable_progress_bar"] is False else [StepProgress()]
        return super()._instantiate_trainer(config, [*callbacks, *progress])

    def _run_subcommand(self, subcommand: str) -> None:
        secrets = Secrets(contents(self._parser(subcommand), self._given))
        with run_name_for_processes(self._given.run_name, self.trainer.strategy, secrets.hide):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Gives the trainer the file that `last` or `best` means; the saved configuration keeps the word."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path = str(self._checkpoint) if self._checkpoint is not None else None
        return kwargs | {"ckpt_path": path, "weights_only": True}

    def fit(self, model: LongContextModule, **kwargs) -> None:
        """Trains. A finished run only makes up for the checks it lacks, and says that it is finished."""
        finished = FinishedRun.of_checkpoint(self._checkpoint, self.trainer)
        if finished is not None:
            finished.complete(model, **kwargs)
            return
        start = "a new run" if self._checkpoint is None else f"goes on from {self._checkpoint.name}"
        plan = announce(self._given, model, self.trainer)
        self._summary.begin(self._given, model, self.trainer, start, plan)
        self.trainer.fit(model, **kwargs)
        self._summary.end(self.trainer)


class OptionsCLI(LRSACLI):
    """Takes the command line of `lrsa fit` as it is, but makes nothing: there is no run."""

    def add_arguments_to_parser(self, parser) -> None:
        super().add_arguments_to_parser(parser)
        for name in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{name}", default=None, help="Ignored.")

    def before_instantiate_classes(self) -> None:
        """Skips the run directory."""

    def instantiate_classes(self) -> None:
        """Makes nothing."""


def make_parser() -> Parser:
    """The parser of the options of `lrsa fit`."""
    return OptionsCLI([], run=False).parser


def _about(prog: str) -> dict[str, str]:
    """Usage and description of a command, for its help."""
    name = prog.rpartition(" ")[2]
    about = {"description": COMMANDS[name].description} if name in COMMANDS else {}
    return {"usage": f"{prog} [--config FILE ...] [--KEY VALUE ...]", **about}


@report_input_errors
def fit(args: list[str]) -> None:
    """Runs `lrsa fit` with the arguments after its name."""
    LRSACLI(["fit", *args])


@report_input_errors
def validate(args: list[str]) -> None:
    """Runs `lrsa validate` with the arguments after its name."""
    LRSACLI(["validate", *args])
