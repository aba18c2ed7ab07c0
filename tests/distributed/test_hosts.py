"""Two processes, launched as two hosts of one device, train like one host of two devices."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.distributed.zero import curve, zero
from tests.processes import free_port, place
from tests.runs import command
from tests.warm import Run

pytestmark = pytest.mark.slow


def torchrun(host: int, port: str) -> dict[str, str]:
    local = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(host)}
    return {**place(host, 2, port), **local, "TORCHELASTIC_RUN_ID": "test"}


def lightning(host: int, port: str) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(host)}


def slurm(host: int, port: str) -> dict[str, str]:
    job = {"JOB_ID": "1", "JOB_NAME": "test", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2"}
    task = {"PROCID": str(host), "LOCALID": "0", "NODEID": str(host), "NODELIST": "127.0.0.1"}
    return {"MASTER_PORT": port, **{f"SLURM_{name}": value for name, value in {**job, **task}.items()}}


@pytest.mark.parametrize("launcher", [torchrun, lightning, slurm])
def test_two_hosts_of_one_process_are_one_host_of_two(
    zero_arguments, run_of_stage: Callable[[int], Path], tmp_path, launcher
):
    hosts = {"trainer.num_nodes": "2", "trainer.devices": "1", "trainer.strategy": zero(2)}
    arguments = command({**zero_arguments, **hosts, "runs_dir": str(tmp_path), "run_name": "hosts"})
    start = partial(launcher, port=free_port())
    started = [Run(arguments, **start(host)) for host in range(2)]
    ended = [run.wait(120) for run in started]
    assert not any(run.status for run in ended), "".join(run.err for run in ended)
    # Not bit for bit: on some processors, sums of processes with one local rank differ in the last bits.
    assert curve(tmp_path / "hosts") == pytest.approx(curve(run_of_stage(2)), abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "hosts" / "checkpoints").iterdir()) == sorted(
        path.name for path in (run_of_stage(2) / "checkpoints").iterdir()
    )
