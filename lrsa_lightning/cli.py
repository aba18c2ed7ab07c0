"""The command `lrsa`: LightningCLI with our module and datamodule, a run directory and a checkpoint policy."""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.callbacks import SaveConfig
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.errors import InputError
from lrsa_lightning.module import LongContextModule
from lrsa_lightning.run_directory import RunDirectory, check_checkpoint

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
            modes = ", ".join(sorted(mode.__name__ for mode in AttentionMode.__subclasses__()))
            message += f"\n  Attention modes: {modes}; files: configs/attention/*.yaml"
        super().error(message, ex)


class LRSACLI(LightningCLI):
    """`lrsa {fit,validate,test} --config FILE ...`; see configs/ for files and README for examples."""

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
        parser.link_arguments("data.seq_len", "model.seq_len")
        parser.link_arguments("model.name_or_path", "data.model_name_or_path")
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """Overrides Lightning's, which lets a checkpoint's hyperparameters win over the command line."""

    def before_instantiate_classes(self) -> None:
        """Settles the run directory and everything that lies in it."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        directory = RunDirectory.of(config)
        if self.subcommand:
            check_checkpoint(config.get("ckpt_path"))
        if self.subcommand == "fit" and config.get("ckpt_path") is None:
            directory.check_free()
        directory.fill_in(config)


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
