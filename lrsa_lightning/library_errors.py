"""Which errors of libraries report a user's mistake, and what they say in one line."""

import json
import lzma
import pickle
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lrsa_lightning.errors import InputError
from lrsa_lightning.parser_errors import UNION, read_error

DEBUG = "LRSA_DEBUG"
# An error that one of these raises itself is about what the user gave it.
_LIBRARY = re.compile(
    r"(datasets|deepspeed|fsspec|gguf|httpcore2?|httpx2?|huggingface_hub|jinja2|jsonargparse|lightning|lightning_fabric"
    r"|omegaconf|peft|pyarrow|pydantic|pydantic_core|requests|safetensors|safetensors_rust|tokenizers|transformers"
    r"|urllib3|wandb|yaml)(\.|$)"
)
# These parts compute with what we hand them.
_COMPUTING = re.compile(r"transformers\.(models|generation)\.")
# The standard library's errors about a file: missing, unreadable, truncated, of another kind.
_OF_FILES = (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError)
_OF_FILES += (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_LONGEST = 600
# Whether the running command has reached its first micro-batch. Until then an error is usually about the user's input.
computing_has_begun: ContextVar[bool] = ContextVar("computing_has_begun", default=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no memory left; some releases of torch_npu raise a plain RuntimeError for it."""
    from torch import OutOfMemoryError

    return isinstance(error, OutOfMemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error))


@contextmanager
def reading(what: str, way_out: str = f"{DEBUG}=1 shows where") -> Iterator[None]:
    """Goes around a library's work on what the user gave: any error that the library raises is the user's mistake.

    Raises:
        InputError: in its place; says what was being read (a key and its value, or a file) and what to do about it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not (is_users_mistake(error) or _LIBRARY.match(_origin(error))):
            raise
        raise InputError(f"{what}: {describe(error)} ({way_out})") from error


def input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that an error is, or that a library has wrapped into its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def is_users_mistake(error: Exception) -> bool:
    """Whether an error reports a user's mistake wherever it was raised; its class and its origin decide.

    Such are errors about files, errors of a library's own class, and a library's plain ValueError or missing module.
    A TypeError, a KeyError or the like may also report a wrong call, so it is not.
    """
    if isinstance(error, _OF_FILES) or any(_LIBRARY.match(base.__module__) for base in type(error).__mro__):
        return True
    origin = _origin(error)
    is_given = _LIBRARY.match(origin) is not None and not _COMPUTING.match(origin)
    return is_given and isinstance(error, ValueError | ModuleNotFoundError)


def describe(error: Exception) -> str:
    """An error's message, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if UNION in (said := str(error)):  # for example when a callback's constructor refuses an argument
        return str(read_error(said))
    first = (said.splitlines() or [""])[0].rstrip()
    text = first if first.endswith(".") else " ".join(said.split())  # advice follows a complete sentence
    if not text or isinstance(error, KeyError | AttributeError | TypeError):
        text = f"{type(error).__name__} {text}".rstrip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _origin(error: Exception) -> str:
    """The module that raised an error, itself or through the standard library or torch.

    A call of a library with arguments that it does not accept is raised in the caller, so it counts as ours.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in (*sys.stdlib_module_names, "torch"):
            return module
    return ""
