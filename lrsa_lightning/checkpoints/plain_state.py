"""Makes a checkpoint of plain data only, which ``torch.load(weights_only=True)`` loads without running any code."""

import io
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from enum import Enum
from functools import cache
from itertools import chain
from operator import is_
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrsa_lightning.errors import InputError, listed

log = logging.getLogger(__name__)
LEFT_OUT = "left_out"  # the key of a checkpoint that names what could not be kept in it
# Lightning cannot resume without these.
_ESSENTIAL = ("epoch", "global_step", "state_dict", "loops", "optimizer_states", "lr_schedulers")
_KEPT_CONTAINERS = (dict, OrderedDict, Counter, list, tuple, set, torch.Size)
_BASES = (int, float, str, bytes)
_WIDEST = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}  # bytes of torch's widest number, by numpy's kind
_FORMS = (
    (Enum, "its .value"),
    ((date, time), "its .isoformat()"),
    (timedelta, "its .total_seconds()"),
    (deque, "a list of its items"),
    (np.ndarray, "an array of numbers, as a plain numpy.ndarray"),
)


def to_plain(value: Any, name: str) -> Any:
    """The value in plain form; parts without an equal plain form stay, and so does a container that does not change.

    numpy's numbers and subclasses of numbers, text and containers (named tuples, default dictionaries, frozen sets)
    become the equal plain value. Arrays become tensors and paths become text, with a log line for each name.
    """
    if isinstance(value, dict):
        return _dict(value, name)
    if isinstance(value, list | tuple | set | frozenset):
        items = [to_plain(item, f"{name}[{place}]") for place, item in enumerate(value)]
        if type(value) in _KEPT_CONTAINERS and all(map(is_, items, value)):
            return value
        kind = list if isinstance(value, list) else tuple if isinstance(value, tuple) else set
        return _made(kind, items, value)
    return _leaf(value, name)


def _dict(value: dict, name: str) -> dict:
    pairs = [(to_plain(key, f"a key of {name}"), to_plain(item, f"{name}[{key!r}]")) for key, item in value.items()]
    is_kept = type(value) in _KEPT_CONTAINERS
    if is_kept and all(map(is_, chain(*pairs), chain(*value.items()))):
        return value
    made = _made(dict, pairs, value)
    if len(made) < len(value):
        return value  # two keys have become one: the value is refused later
    return type(value)(made) if is_kept else dict(made)


def _made(kind: type, items: list, value: Any) -> Any:
    """A container of the items; the value itself if a plain form cannot be in a set or be a key."""
    try:
        return kind(items)
    except TypeError:
        return value


def _leaf(value: Any, name: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is np.ndarray and value.dtype.kind in "biufc" and value.dtype.itemsize <= _WIDEST[value.dtype.kind]:
        _say_once(f"{name}, a numpy array, is kept in checkpoints as a tensor")
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, PurePath):
        _say_once(f"{name}, a {type(value).__name__}, is kept in checkpoints as text")
        return str(value)
    for base in _BASES:
        if isinstance(value, base) and type(value) not in (base, bool):
            return base.__str__(value) if base is str else base(value)
    return value


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def check_plain(value: Any, name: str) -> None:
    """Raises an InputError if a part has no plain form; it names the part and what to keep instead."""
    if found := [*_unloadable(to_plain(value, name), name)]:
        raise InputError(f"{_describe(found)}: a checkpoint with it could not be loaded again")


def plain_checkpoint(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A checkpoint in plain form, and a description of what was left out.

    It leaves out the state of a callback, or an added entry, if a part of it has no plain form: the steps since the
    previous checkpoint are worth more.

    Returns:
        The checkpoint, and the description; empty if nothing was left out.

    Raises:
        InputError: a part without which no run can resume has no plain form.
    """
    plain = {key: to_plain(value, key) for key, value in checkpoint.items()}
    places = [(plain, key, key) for key in plain if key != "callbacks"]
    if "callbacks" in plain:
        callbacks = plain["callbacks"] = {**plain["callbacks"]}
        places += [(callbacks, key, f"callbacks[{key!r}]") for key in callbacks]
    found, left_out = [], []
    for owner, key, name in places:
        if culprits := [*_unloadable(owner[key], name)]:
            if owner is plain and key in _ESSENTIAL:
                raise InputError(f"{_describe(culprits)}: a checkpoint with it could not be loaded again")
            found += culprits
            left_out.append(name)
            del owner[key]
    return (plain | {LEFT_OUT: left_out}, _describe(found)) if found else (plain, "")


def _unloadable(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Finds the parts of a value that ``torch.load(weights_only=True)`` refuses, by trying; yields names and parts."""
    if _loads(_without_tensors(value)):
        return
    within = [culprit for part, part_name in _parts(value, name) for culprit in _unloadable(part, part_name)]
    yield from within or [(name, value)]


def _parts(value: Any, name: str) -> Iterator[tuple[Any, str]]:
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            yield key, f"the key {key!r} of {name}"
            yield item, f"{name}[{key!r}]"
    elif type(value) in (list, tuple, set):
        for place, item in enumerate(value):
            yield item, f"{name}[{place}]"


def _loads(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # the value's own pickling methods can raise anything
        return False
    return True


def _without_tensors(value: Any) -> Any:
    """The value without its large tensors. Unusual tensor classes stay: torch loads only some of them."""
    if type(value) in (Tensor, torch.nn.Parameter):
        return None
    if type(value) in (dict, OrderedDict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(item) for item in value)
    return value


def _describe(found: list[tuple[str, Any]]) -> str:
    """Names some parts, and what to keep instead."""
    return listed([f"{name} is a {type(value).__name__} (keep {_form(value)} instead)" for name, value in found])


def _form(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        return "its dataclasses.asdict(...)"
    return next((form for kind, form in _FORMS if isinstance(value, kind)), "numbers, text, lists, dicts or tensors")
