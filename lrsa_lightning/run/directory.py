"""The directory of a run: configuration, checkpoints, metrics, plots and the Weights & Biases id."""

import logging
import netrc
import os
import secrets
import time
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from lrsa_lightning.checkpoints.atomic_files import BEST
from lrsa_lightning.checkpoints.last import fault_of, find_last
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.disk import check_writable
from lrsa_lightning.files.path_names import checked_name
from lrsa_lightning.files.yaml_text import read_mapping
from lrsa_lightning.run.claim import RUN_NAME
from lrsa_lightning.run.saved_config import own_config
from lrsa_lightning.run.start import is_start

log = logging.getLogger(__name__)
WANDB_ID = "wandb_id"
# torchrun, SLURM, MPI and Lightning's own launcher set these in the processes that they start.
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "GROUP_RANK", "NODE_RANK", "LOCAL_RANK")


class RunDirectory:
    """``<runs_dir>/<run_name>``; fills in the configuration so that all files of the run go there."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def of(cls, config) -> "RunDirectory":
        """The directory of a parsed configuration, whose run_name is set if it was not.

        The saved configuration of a run means the directory that contains it, even if that was moved.

        Raises:
            InputError: the name is not one part of a path, or is missing although torchrun or SLURM start each process.
        """
        if (own := own_config(config.get("config"))) is not None and (found := cls._that_contains(own, config)):
            return found
        if config.run_name is None:
            named = os.environ.get(RUN_NAME)
            config.run_name = checked_name(named, RUN_NAME) if named else _sweep_run_id() or _new_name(config)
        return cls(Path(config.runs_dir) / checked_name(config.run_name, "--run_name"))

    @classmethod
    def _that_contains(cls, own: Path, config) -> "RunDirectory | None":
        """The directory of a saved configuration, unless the command line gives another one."""
        saved = read_mapping(own, "the configuration of a run")
        runs_dir, run_name = saved.get("runs_dir"), saved.get("run_name")
        folder = own.parent if own.parent.name not in ("", "..") else own.absolute().parent
        found = cls(folder)
        found._undo_fill_in(config, cls(Path(str(runs_dir), str(run_name))))
        if config.runs_dir != runs_dir:
            return None
        config.runs_dir = str(folder.parent)
        if config.run_name != run_name:
            return None
        config.run_name = folder.name
        return found

    def check_free(self) -> None:
        """Raises an InputError if the directory already holds a run."""
        if _is_first_of_node() and (self.path / "config.yaml").exists() and not is_start(self.path):
            raise InputError(
                f"{self.path} holds a run already: give another --run_name, or resume it with "
                f"--config {self.path / 'config.yaml'} --ckpt_path last"
            )

    def check_writable(self) -> None:
        """Raises an InputError if the run's files or checkpoints cannot be written."""
        if _is_first_of_node():
            check_writable(self.path)
            check_writable(self.checkpoints)

    def checkpoint(self, ckpt_path: str | None, warns: bool = True) -> Path | None:
        """The checkpoint that --ckpt_path means: a path, `best`, or `last`, which is None if there is none yet.

        With ``warns`` it names the checkpoints that `last` skips.

        Raises:
            InputError: it does not exist or cannot be loaded; for `last`, there are checkpoints but none can be loaded.
        """
        if ckpt_path == "last":
            last = find_last(self.checkpoints).check(self.checkpoints)
            if last.skipped and warns and _is_first_of_node():
                log.warning("%s: %s", self.checkpoints, last.warning())
            return last.path
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
        """The run directory that contains a checkpoint; this one if none does."""
        other = checkpoint.absolute().parent.parent
        return other if (other / "config.yaml").exists() else self.path

    def fill_in(self, config) -> None:
        """Sets the directories of a configuration's trainer, loggers and checkpoint callbacks to this one."""
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

    def _undo_fill_in(self, config, before: "RunDirectory") -> None:
        """Undoes `fill_in`: an older version saved the filled-in values, when this directory was `before`."""
        of_wandb = {"name": before.path.name, "id": self._saved_wandb_id()}
        for entry in (*_entries(config.trainer.logger), *_entries(config.trainer.callbacks)):
            is_wandb = entry.class_path.endswith("WandbLogger")
            for key, value in (of_wandb if is_wandb else {"dirpath": str(before.checkpoints)}).items():
                if value is not None and entry.init_args.get(key) == value:
                    entry.init_args[key] = None

    def _fill_in_wandb(self, arguments) -> None:
        arguments.name = arguments.name or self.path.name
        arguments.id = _sweep_run_id() or arguments.id or self._saved_wandb_id() or secrets.token_hex(4)
        # With the same id a resumed run continues the W&B run: the logger's default is resume="allow".
        arguments.offline = arguments.offline or not _wandb_login()
        # The runs of one process share wandb's service process, which stays in the folder where the first run began.
        arguments.save_dir = str(self.path.absolute())

    def _saved_wandb_id(self) -> str | None:
        file = self.path / WANDB_ID
        return file.read_text(encoding="utf-8") if file.exists() else None


def is_global_first() -> bool:
    """Whether this process has global rank 0, and so writes the run's files; works before Lightning is set up.

    If several launchers set a rank, as a SLURM shell that starts torchrun, all ranks must be 0.
    """
    return all(int(os.environ.get(name) or 0) == 0 for name in _RANKS)


def _is_first_of_node() -> bool:
    return int(os.environ.get("LOCAL_RANK") or 0) == 0


def _entries(value) -> list:
    """The classes with init_args in a trainer argument, which may be one class, a list or a switch."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if hasattr(entry, "init_args")]


def _sweep_run_id() -> str | None:
    """The id that `wandb agent` gave this run: in a sweep, wandb accepts no other."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def _new_name(config) -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        raise InputError("give --run_name: processes started by torchrun or SLURM must agree on one directory")
    mode = config.model.attention.class_path.rsplit(".", 1)[-1].lower()
    name = f"{mode}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))  # two runs may begin in one second
    return next(name for name in names if not Path(config.runs_dir, name).exists())


def _wandb_login() -> bool:
    """Whether Weights & Biases can find a key, or the environment sets its mode.

    wandb's own check is not used: it would read the environment for good, before the logger sets its mode.
    """
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host) is not None  # where `wandb login` puts the key
    except (OSError, netrc.NetrcParseError):
        return False
