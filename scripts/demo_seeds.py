"""Trains the demo with several seeds, and prints the RULER scores of each and its minutes as a Markdown table.

Seeds run one after another, or as many at a time as --jobs says, each on cores of its own.
Usage: python scripts/demo_seeds.py [--seeds 10] [--jobs 1] [--cores 2] [--runs_dir DIR] [arguments of `lrsa fit`]
"""

import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.errors import InputError
from lrsa_lightning.metrics import METRICS, read_rows
from lrsa_lightning.ranges import PositiveInt

CONFIG = Path("configs") / "demo.yaml"
SCORE = "ruler/niah_single_1/512/r"
BUDGETS = ("1", "0.5", "0.25")


def core_groups(jobs: int, cores: int) -> list[list[int]]:
    """The cores of each of the runs that run at a time.

    Raises:
        InputError: the machine has fewer cores.
    """
    own = sorted(os.sched_getaffinity(0))
    if jobs * cores > len(own):
        raise InputError(f"--jobs {jobs} of {cores} cores each need {jobs * cores}, this machine has {len(own)}")
    return [own[at * cores : (at + 1) * cores] for at in range(jobs)]


def fit_command(seed: int, runs_dir: Path, further: Sequence[str]) -> list[str]:
    """The command of a run. Its seed comes after any further --config, which has one too."""
    command = [sys.executable, "-m", "lrsa_lightning", "fit", "--config", str(CONFIG), *further]
    return [*command, "--runs_dir", str(runs_dir), "--run_name", f"seed-{seed}", "--seed_everything", str(seed)]


def train(seed: int, runs_dir: Path, cores: Sequence[int], further: Sequence[str]) -> str:
    """The table's line of a run, which is a process of its own. Its output is in a log file."""
    command = fit_command(seed, runs_dir, further)
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores))}
    started = time.perf_counter()
    with open(runs_dir / f"seed-{seed}.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        os.sched_setaffinity(process.pid, cores)
        if process.wait():
            return f"| {seed} | failed: see {log.name} |"
    minutes = (time.perf_counter() - started) / 60
    last = [row for row in read_rows(runs_dir / f"seed-{seed}" / METRICS) if f"{SCORE}1" in row][-1]
    return f"| {seed} | " + " | ".join(f"{last[SCORE + budget]:g}" for budget in BUDGETS) + f" | {minutes:.1f} |"


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Runs the demo with the seeds 1, 2, 3, ..."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--seeds", type=PositiveInt, default=10, help="how many")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="runs at a time")
    parser.add_argument("--cores", type=PositiveInt, default=2, help="of each run")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs") / "demo-seeds", help="folder of the runs")
    options, further = parser.parse_known_args(arguments)
    free: queue.Queue[list[int]] = queue.Queue()
    for group in core_groups(options.jobs, options.cores):
        free.put(group)
    options.runs_dir.mkdir(parents=True, exist_ok=True)

    def one(seed: int) -> str:
        cores = free.get()
        try:
            return train(seed, options.runs_dir, cores, further)
        finally:
            free.put(cores)

    print("| seed | r = 1 | r = 1/2 | r = 1/4 | minutes |\n|---|---|---|---|---|")
    with ThreadPoolExecutor(options.jobs) as pool:
        for text in pool.map(one, range(1, options.seeds + 1)):
            print(text, flush=True)


if __name__ == "__main__":
    main()
