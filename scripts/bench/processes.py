"""Rows of a bench in processes of their own: a row that crashes, hangs or runs out of memory loses itself alone."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_SPAWN = get_context("spawn")  # a forked process could not use CUDA
_LEFT_OVER = 2**28  # bytes on the device, from which on the next row would measure another one's memory


class Failed(Exception):
    """A row without figures; its text says why."""


def results(work: Callable[[T], Any], items: Sequence[T], timeout_s: float) -> Iterator[tuple[T, Any | Failed]]:
    """Calls a function on each item, in one process as long as all goes well, and in a new one after a failure.

    A row that leaves memory on the device also ends its process.

    Args:
        work: a function of a module.
        items: its arguments; like its results they are pickled.
        timeout_s: seconds for one item; the process is then killed.

    Yields:
        each item with its result, or with a `Failed`.
    """
    left = list(items)
    while left:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, work, left))
        process.start()
        theirs.close()
        while left and (result := _receive(ours, process, timeout_s)) is not None:
            yield left.pop(0), result
            if isinstance(result, Failed):
                break
        process.join(timeout=10)
        process.kill()
        process.join()


def _receive(connection, process, timeout_s: float) -> Any | Failed | None:
    """The next result; None where the process ended in good order before it came to the item."""
    if not connection.poll(timeout_s):
        process.kill()
        return Failed(f"not finished after {timeout_s:g} s")
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return Failed(f"crashed with exit status {process.exitcode}") if process.exitcode else None


def _serve(connection, work: Callable[[T], Any], items: Sequence[T]) -> None:
    """Runs in the other process. Whatever is printed there goes to standard error: standard output has the table."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.argv = sys.argv[:1]  # a spawned process has its parent's arguments
    for item in items:
        try:
            result = work(item)
        except BaseException as error:
            connection.send(_failure(error))
            return
        connection.send(result)
        if torch.cuda.is_initialized() and torch.cuda.memory_allocated() > _LEFT_OVER:
            return


def _failure(error: BaseException) -> Failed:
    if isinstance(error, SystemExit):
        return Failed("refused: see the line above")
    if "out of memory" in str(error).lower():
        return Failed("out of memory")
    traceback.print_exception(error)
    return Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
