"""Runs of `lrsa` over several real processes on the CPU (over gloo), started one by one as torchrun does."""

import socket

from tests.runs import command
from tests.warm import Ended, Run


def on_ranks(*of_ranks: dict[str, str], timeout: float = 150, subcommand: str = "fit") -> list[Ended]:
    """Runs the command under DDP in as many processes as there are options, each with its own.

    Raises:
        TimeoutError: one of them hangs; all are killed.
    """
    ddp = {"trainer.devices": str(len(of_ranks)), "trainer.strategy": "ddp"} if len(of_ranks) > 1 else {}
    return on_lines([command({**options, **ddp}, subcommand) for options in of_ranks], timeout)


def on_lines(of_ranks: list[list[str]], timeout: float = 150) -> list[Ended]:
    """The same for whole lists of arguments.

    Raises:
        TimeoutError: one of them hangs; all are killed.
    """
    port = free_port()
    size = len(of_ranks)
    started = [Run(line, **(place(rank, size, port) if size > 1 else {})) for rank, line in enumerate(of_ranks)]
    try:
        return [run.wait(timeout) for run in started]
    finally:
        for run in started:
            run.kill()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def place(rank: int, world_size: int, port: str) -> dict[str, str]:
    """What torchrun tells a process."""
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return master | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
