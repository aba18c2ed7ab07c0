"""Where a command tells a user's mistake, which is one line, from a bug of ours, which is a traceback."""

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.callbacks.first_step import begin_anew, has_begun
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.library_errors import DEBUG, describe, input_error, is_users_mistake

_GRACE_S = 2
# Calls of functions that are deprecated in the newest releases alone, a datamodule without validation files, and advice
# on loaders and summaries that does not fit prepared data and attention of our own.
_NOISE = (
    "'set_vital' is deprecated",
    ".*LeafSpec.* is deprecated",
    r"\s*``(instantiate_classes|enable_path)``",
    r"\s*By default only one JsonargparseDeprecationWarning",
    "Total length of `list` across ranks is zero",
    ".*does not have many workers",
    ".*not supported by the model summary",
)


def report_input_errors(command: Callable) -> Callable:
    """A command in which a user's mistake is one line on stderr and exit status 2.

    That is an `InputError`, and before the first step what libraries raise for what they were given (see
    `is_users_mistake`). With LRSA_DEBUG=1 the traceback is shown too. All else is a bug of ours and goes on.
    """

    @wraps(command)
    def reporting(*args, **kwargs):
        _quieten()
        begin_anew()
        try:
            return command(*args, **kwargs)
        except Stopped as stopped:
            if rank_zero_only.rank == 0:  # the others have stopped for the same reason
                print(f"lrsa: {stopped}", file=sys.stderr)
            raise
        except Exception as error:
            mistake = input_error(error)
            if mistake is None and not has_begun() and is_users_mistake(error):
                mistake = InputError(f"{describe(error)} ({DEBUG}=1 shows where)")
            if mistake is None:
                raise
            refuse(str(mistake), error)

    return reporting


def refuse(message: str, error: BaseException | None = None) -> NoReturn:
    """Ends the command with one line, and exit status 2.

    Whatever starts several processes ends the others when one fails: those that are not the first of their node wait
    for that, so that what all would say is said once.

    Args:
        message: what is wrong, where, and the way out; further lines are indented.
        error: its cause; LRSA_DEBUG=1 shows its traceback.
    """
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    if rank > 0:
        time.sleep(_GRACE_S)
    if error is not None and os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"lrsa: error: {f'(rank {rank_zero_only.rank}) ' if rank > 0 else ''}{message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _quieten() -> None:
    """Our own log lines on, others' advertisements and deprecations off."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("lrsa_lightning").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
