"""Where a command tells a user's mistake, shown as one line, from a bug of ours, shown as a traceback."""

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.library_errors import DEBUG, computing_has_begun, describe, input_error, is_users_mistake

_GRACE_S = 2
# Deprecations in the newest releases, arguments that a command passes on, a datamodule without validation files, and
# advice on loaders and summaries. None of it applies to prepared data and our attention.
_NOISE = (
    "'set_vital' is deprecated",
    ".*LeafSpec.* is deprecated",
    r"`torch\.distributed\.\w+` is deprecated",
    r"\s*``(instantiate_classes|enable_path)``",
    r"\s*By default only one JsonargparseDeprecationWarning",
    "LightningCLI's args parameter is intended",
    "Total length of `list` across ranks is zero",
    ".*does not have many workers",
    ".*not supported by the model summary",
    ".*is smaller than the logging interval",  # each step has its row, whatever the interval
)
# Lightning's log lines on accelerators that are not there, and what the first and the last lines of a run say.
_NOISE_OF_LIGHTNING = (
    "Tip:",
    "PU available: ",
    "Loading `",
    "`Trainer.fit` stopped: `max_",
    "`weights_only` was not set",
    "distributed_backend=",
    "Restoring states from",
    "Restored all states from",
)
_OF_EACH_RANK = (
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.strategies.deepspeed",
)


def report_input_errors(command: Callable) -> Callable:
    """Makes a command print a user's mistake as one line on stderr and exit with status 2.

    A mistake is an `InputError`. Before the first step it is also a library's error about its input (see
    `is_users_mistake`). LRSA_DEBUG=1 also prints the traceback. Every other error is a bug of ours and propagates.
    """

    @wraps(command)
    def reporting(*args, **kwargs):
        _quieten()
        computing_has_begun.set(False)
        try:
            return command(*args, **kwargs)
        except Stopped as stopped:
            if _rank() == 0:  # all ranks stopped for the same reason
                print(f"lrsa: {stopped}", file=sys.stderr)
            raise
        except Exception as error:
            mistake = input_error(error)
            if mistake is None and not computing_has_begun.get() and is_users_mistake(error):
                mistake = InputError(f"{describe(error)} ({DEBUG}=1 shows where)")
            if mistake is None:
                raise
            refuse(str(mistake), error)

    return reporting


def refuse(message: str, error: BaseException | None = None) -> NoReturn:
    """Ends the command with one line and exit status 2.

    A launcher ends all processes when one fails. The processes of a node that are not its first wait for that, so the
    line is printed once. LRSA_DEBUG=1 also prints the traceback of the error that caused the refusal.
    """
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    if rank > 0:
        time.sleep(_GRACE_S)
    if error is not None and os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"lrsa: error: {f'(rank {_rank()}) ' if rank > 0 else ''}{message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _rank() -> int:
    from lightning.pytorch.utilities import rank_zero_only  # its import takes seconds, which most commands can save

    return rank_zero_only.rank


def _quieten() -> None:
    """Turns our log lines on, and libraries' tips and deprecation warnings off."""
    lines = logging.StreamHandler()
    lines.addFilter(lambda record: not record.name.startswith("lightning."))  # Lightning prints its own
    lines.addFilter(_is_said_once)
    for name in _OF_EACH_RANK:
        logging.getLogger(name).addFilter(_is_said_once)
    logging.basicConfig(format="%(name)s: %(message)s", handlers=[lines])
    logging.getLogger("lrsa_lightning").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_helps)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def _is_said_once(record: logging.LogRecord) -> bool:
    """Leaves information to the first rank; each rank warns."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    return record.levelno >= logging.WARNING or not lightning or not lightning.rank_zero_only.rank


def _helps(record: logging.LogRecord) -> bool:
    return not any(noise in str(record.msg) for noise in _NOISE_OF_LIGHTNING)
