"""Rows of a bench in processes of their own: a row that crashes, hangs or runs out of memory loses itself alone."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar
from unittest.mock import patch

import torch

T = TypeVar("T")
_SPAWN = get_context("spawn")  # a forked process could not use CUDA
_LEFT_OVER = 2**28  # bytes on the device, from which on the next row would measure another one's memory
_GRACE_S = 10


class Failed(Exception):
    """A row without figures; its text says why."""


def results(
    work: Callable[[T], Any],
    items: Sequence[T],
    timeout_s: float,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[T, list[Any] | Failed]]:
    """Calls a function on each item, in the same processes as long as all goes well, and in new ones after a failure.

    A row that leaves memory on its device also ends its processes.

    Args:
        work: a function of a module.
        items: its arguments; like its results they are pickled.
        timeout_s: seconds for one item; the processes are then killed.
        ranks: processes that work on an item together; several have torchrun's environment.
        environment: further variables of the processes.

    Yields:
        each item with the results of all ranks, or with a `Failed`.
    """
    processes: _Processes | None = None
    try:
        for item in items:
            processes = processes or _Processes(work, ranks, environment or {})
            result = processes.call(item, timeout_s)
            if isinstance(result, Failed) or max(processes.left_over) > _LEFT_OVER:
                processes.end(0 if isinstance(result, Failed) else _GRACE_S)
                processes = None
            yield item, result
    finally:
        if processes is not None:
            processes.end()


class _Processes:
    """Ranks that wait for items.

    Attributes:
        left_over: bytes that each rank held on its device after the last item.
    """

    def __init__(self, work: Callable[[T], Any], ranks: int, environment: Mapping[str, str]):
        self.left_over = [0] * ranks
        self._connections: list[Connection] = []
        self._processes = []
        launch = torchrun_environment(ranks) if ranks > 1 else [{}]
        for of_rank in launch:
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_serve, args=(theirs, work))
            with patch.dict(os.environ, {**environment, **of_rank}):
                process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def call(self, item: Any, timeout_s: float) -> list[Any] | Failed:
        for connection in self._connections:
            connection.send(item)
        until, results = time.monotonic() + timeout_s, {}
        while waiting := [connection for connection in self._connections if connection not in results]:
            ready = wait(waiting, max(0.0, until - time.monotonic()))
            if not ready:
                return Failed(f"not finished after {timeout_s:g} s")
            for connection in ready:
                rank = self._connections.index(connection)
                try:
                    results[connection], self.left_over[rank] = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join(_GRACE_S)
                    return Failed(f"crashed with exit status {self._processes[rank].exitcode}")
                if isinstance(results[connection], Failed):
                    return results[connection]
        return [results[connection] for connection in self._connections]

    def end(self, grace_s: float = _GRACE_S) -> None:
        """Ends the processes; those that do not end by themselves are killed."""
        for connection in self._connections:
            connection.close()
        until = time.monotonic() + grace_s
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
            process.join()


def torchrun_environment(ranks: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each rank of one host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "bench"},
        **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "NODE_RANK": "0"},
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _serve(connection: Connection, work: Callable[[T], Any]) -> None:
    """Runs in the other process. Whatever is printed there goes to standard error: standard output has the table."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.argv = ["lrsa"]  # a spawned process has its parent's arguments
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            result = work(item)
        except BaseException as error:
            result = _failure(error)
        left_over = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
        connection.send((result, left_over))


def _failure(error: BaseException) -> Failed:
    if isinstance(error, SystemExit):
        return Failed("refused: see the line above")
    if "out of memory" in str(error).lower():
        return Failed("out of memory")
    traceback.print_exception(error)
    return Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
