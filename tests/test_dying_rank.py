"""When one process of a run dies, all end soon, and its traceback is seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interruptions import interruption
from tests.runs import command

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_tmp_path")]


@pytest.mark.parametrize(("rank", "how"), [(1, "kill"), (1, "raise"), (0, "raise")])
def test_all_processes_end_when_one_dies(arguments, rank, how):
    entries = json.dumps([interruption("FailsAlone", rank=rank, how=how)])
    arguments |= {"trainer.devices": "2", "trainer.strategy": "ddp", "trainer.callbacks": entries}
    run = subprocess.Popen(
        [sys.executable, "-m", "lrsa_lightning.cli", *command(arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = run.communicate(timeout=90)
        assert run.returncode not in (0, None)
        assert ("RuntimeError: the device fell off the bus" in said) == (how == "raise")
        assert "Child process with PID" in said or rank == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, 9)
