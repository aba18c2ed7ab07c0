"""One directory a run: configuration, checkpoints, metrics, plots and the Weights & Biases id."""

import logging
import netrc
import os
import secrets
import time
from pathlib import Path
from urllib.parse import urlsplit

from lrsa_lightning.checkpoint_files import BEST, fault_of, find_last
from lrsa_lightning.disk import check_writable
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
WANDB_ID = "wandb_id"
_KEYWORDS = ("last", "best")


class RunDirectory:
    """``<runs_dir>/<run_name>``, and what the configuration must say so that a run's files lie there."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def of(cls, config) -> "RunDirectory":
        """The directory of a parsed configuration, whose run_name is set if it was not.

        Raises:
            InputError: processes started one by one (torchrun, SLURM) could not agree on a name.
        """
        if config.run_name is None:
            config.run_name = os.environ.get("LRSA_RUN_NAME") or _sweep_run_id() or _new_name(config)
            # Processes that Lightning starts for further devices read the same name from here.
            os.environ["LRSA_RUN_NAME"] = config.run_name
        return cls(Path(config.runs_dir) / config.run_name)

    def check_free(self) -> None:
        """Refuses a directory that another run lies in.

        Raises:
            InputError: it does.
        """
        if _first_process() and (self.path / "config.yaml").exists():
            raise InputError(
                f"{self.path} holds a run already: give another --run_name, or resume it with "
                f"--config {self.path / 'config.yaml'} --ckpt_path last"
            )

    def check_writable(self) -> None:
        """
        Raises:
            InputError: the run's files or checkpoints could not be written.
        """
        if _first_process():
            for folder in (self.path, self.checkpoints):
                check_writable(folder)

    def checkpoint(self, ckpt_path: str | None) -> Path | None:
        """The checkpoint that --ckpt_path means; None for `last` where there is none yet.

        Raises:
            InputError: it does not exist, or cannot be loaded; for `last`, none of those there are can.
        """
        if ckpt_path == "last":
            return self._last()
        if ckpt_path is None:
            return None
        path = self.checkpoints / BEST if ckpt_path == "best" else Path(ckpt_path)
        if not path.exists():
            raise InputError(
                f"--ckpt_path {ckpt_path} does not exist: give a checkpoint of {self.checkpoints}, or last"
            )
        if fault := fault_of(path):
            raise InputError(f"--ckpt_path {ckpt_path} {fault}: give another, or last")
        return path

    def of_checkpoint(self, checkpoint: Path) -> Path:
        """The run directory that a checkpoint lies in, or this one."""
        other = checkpoint.absolute().parent.parent
        return other if (other / "config.yaml").exists() else self.path

    def _last(self) -> Path | None:
        last = find_last(self.checkpoints).check(self.checkpoints)
        if last.skipped and _first_process():
            log.warning("%s: %s", self.checkpoints, last.warning())
        return last.path

    def fill_in(self, config) -> None:
        """Points root directory, loggers and checkpoint callbacks of a configuration here."""
        config.trainer.default_root_dir = str(self.path)
        for logger in _entries(config.trainer.logger):
            arguments = logger.init_args
            if "save_dir" in arguments:
                arguments.save_dir = str(self.path)
            if logger.class_path.endswith("WandbLogger"):
                self._fill_in_wandb(arguments)
        for callback in _entries(config.trainer.callbacks):
            if "dirpath" in callback.init_args:
                self.checkpoints = Path(callback.init_args.dirpath or self.checkpoints)
                callback.init_args.dirpath = str(self.checkpoints)

    def _fill_in_wandb(self, arguments) -> None:
        arguments.name = arguments.name or self.path.name
        arguments.id = _sweep_run_id() or arguments.id or self._wandb_id()
        # With the same id a resumed run goes on where it was: the logger's own default is resume="allow".
        arguments.offline = arguments.offline or not _wandb_login()

    def _wandb_id(self) -> str:
        file = self.path / WANDB_ID
        return file.read_text(encoding="utf-8") if file.exists() else secrets.token_hex(4)


def _first_process() -> bool:
    """Of this node; the others are started when it has begun."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _entries(value) -> list:
    """The class entries with arguments of a trainer argument that may be one of them, a list or a switch."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if hasattr(entry, "init_args")]


def _sweep_run_id() -> str | None:
    """The id that `wandb agent` gave this run: within a sweep wandb lets no other stand."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def _new_name(config) -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        raise InputError("give --run_name: processes started by torchrun or SLURM must agree on one directory")
    mode = config.model.attention.class_path.rsplit(".", 1)[-1].lower()
    return f"{mode}-{time.strftime('%Y%m%d-%H%M%S')}"


def _wandb_login() -> bool:
    """Whether Weights & Biases can find a key, or was told a mode in the environment.

    Asked without wandb: its own check reads the environment once and for all, before the logger sets its mode.
    """
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host) is not None  # where `wandb login` puts the key
    except (OSError, netrc.NetrcParseError):
        return False
