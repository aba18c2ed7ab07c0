"""Real processes over gloo for tests of several ranks."""

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

TIMEOUT = timedelta(seconds=60)


def on_ranks(size: int, function: Callable, *args, tmp_path: Path, joined: bool = True) -> list:
    """The results of ``function(*args)`` on each of ``size`` ranks of a gloo process group.

    The processes are forked, and so inherit the test's imports and objects. Unless ``joined``, the function makes the
    process group itself.
    """
    sys.stdout.flush()
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            _run(rank, size, function, args, tmp_path, joined)
        children.append(child)
    failed = [rank for rank, child in enumerate(children) if os.waitpid(child, 0)[1]]
    if failed:
        # The first error is the cause; the other ranks lost their connection.
        errors = sorted(tmp_path.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
        raise AssertionError(errors[0].read_text() if errors else f"ranks {failed} died without an error")
    return [torch.load(tmp_path / f"result-{rank}", weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, function: Callable, args: tuple, tmp_path: Path, joined: bool) -> None:
    status = 1
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    try:
        if joined:
            store = f"file://{tmp_path}/store"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=TIMEOUT)
        torch.save(function(*args), tmp_path / f"result-{rank}")
        if joined:
            dist.barrier()
        status = 0
    except BaseException:
        (tmp_path / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}\n")
    finally:
        os._exit(status)
