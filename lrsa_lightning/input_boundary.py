"""Where a command tells a user's mistake, which is one line, from a bug of ours, which is a traceback."""

import json
import logging
import lzma
import os
import pickle
import re
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import NoReturn

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.callbacks.stop_on_signal import Stopped
from lrsa_lightning.errors import InputError

DEBUG = "LRSA_DEBUG"
# What they raise on their own account, they raise for what the user gave them.
_LIBRARY = re.compile(
    r"(datasets|deepspeed|fsspec|httpcore|httpx|huggingface_hub|jinja2|jsonargparse|lightning|lightning_fabric"
    r"|omegaconf|peft|pyarrow|pydantic|pydantic_core|requests|safetensors|safetensors_rust|tokenizers|transformers"
    r"|urllib3|wandb|yaml)(\.|$)"
)
# Of the standard library, about a file: missing, unreadable, cut short, of another kind.
_OF_FILES = (
    OSError,
    EOFError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_LONGEST = 600
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
_begun: ContextVar[bool] = ContextVar("_begun", default=False)


class FirstStep(Callback):
    """Tells the boundary that computing has begun: from here on a library's error is no longer the user's."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        _begun.set(True)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        _begun.set(True)


def report_input_errors(command: Callable) -> Callable:
    """A command in which a user's mistake is one line on stderr and exit status 2.

    That is an `InputError`, and before the first step what libraries raise for what they were given (see
    `is_users_mistake`). With LRSA_DEBUG=1 the traceback is shown too. All else is a bug of ours and goes on.
    """

    @wraps(command)
    def reporting(*args, **kwargs):
        _quieten()
        _begun.set(False)
        try:
            return command(*args, **kwargs)
        except Stopped as stopped:
            if rank_zero_only.rank == 0:  # the others have stopped for the same reason
                print(f"lrsa: {stopped}", file=sys.stderr)
            raise
        except Exception as error:
            mistake = input_error(error)
            if mistake is None and not _begun.get() and is_users_mistake(error):
                mistake = InputError(_advised(describe(error)))
            if mistake is None:
                raise
            refuse(str(mistake), error)

    return reporting


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around a library's work on what the user gave: any error that the library raises there is the user's mistake.

    Args:
        what: the key and its value, or the file.

    Raises:
        InputError: in its place; says what was being read.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not (is_users_mistake(error) or _of_library(error)):
            raise
        raise InputError(_advised(f"{what}: {describe(error)}")) from error


def input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that an error is, or that a library has wrapped into its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def is_users_mistake(error: Exception) -> bool:
    """Whether it tells of a mistake of the user's wherever it was raised, by its class and where that was.

    Such are errors about files, those of a class that a library has made for it, and a library's plain ValueError and
    missing modules. A TypeError, a KeyError or the like is not: it may as well tell of a wrong call.
    """
    if isinstance(error, _OF_FILES) or any(_LIBRARY.match(base.__module__) for base in type(error).__mro__):
        return True
    return isinstance(error, ValueError | ModuleNotFoundError) and _of_library(error)


def describe(error: Exception) -> str:
    """What it says, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | AttributeError | TypeError):
        text = f"{type(error).__name__} {text}".rstrip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def refuse(message: str, error: BaseException | None = None) -> NoReturn:
    """Ends the command with one line, and exit status 2.

    Whatever starts several processes ends the others when one fails: those that are not the first of their node wait
    for that, so that what all would say is said once.

    Args:
        message: what is wrong, where, and the way out; further lines are indented.
        error: behind it, whose traceback LRSA_DEBUG=1 shows.
    """
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    if rank > 0:
        time.sleep(_GRACE_S)
    if error is not None and os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"lrsa: error: {f'(rank {rank_zero_only.rank}) ' if rank > 0 else ''}{message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _advised(message: str) -> str:
    return f"{message} ({DEBUG}=1 shows where)"


def _of_library(error: Exception) -> bool:
    """Whether one of the libraries raised it, through the standard library or torch or by itself.

    A call of a library with arguments that it does not take is raised by the caller, and so is ours.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in (*sys.stdlib_module_names, "torch"):
            return _LIBRARY.match(module) is not None
    return False


def _quieten() -> None:
    """Our own log lines on, others' advertisements and deprecations off."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("lrsa_lightning").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
