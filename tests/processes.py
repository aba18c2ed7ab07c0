"""Runs of `lrsa` over several real processes on the CPU (DDP over gloo), started one by one as torchrun does."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.runs import command

ROOT = Path(__file__).parent.parent


@dataclass
class Ended:
    """How a process ended: its exit status and what it said."""

    status: int
    out: str
    err: str


def on_ranks(*of_ranks: dict[str, str], timeout: float = 150, subcommand: str = "fit") -> list[Ended]:
    """Runs the command in as many processes as there are options, each with its own.

    Raises:
        subprocess.TimeoutExpired: one of them hangs; all are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        _start(command({**options, **_strategy(len(of_ranks))}, subcommand), rank, len(of_ranks), port)
        for rank, options in enumerate(of_ranks)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def _strategy(devices: int) -> dict[str, str]:
    return {"trainer.devices": str(devices), "trainer.strategy": "ddp"} if devices > 1 else {}


def _start(arguments: list[str], rank: int, world_size: int, port: int) -> subprocess.Popen:
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # processes that spin for the same cores take minutes
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lrsa_lightning.cli", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
