"""Runs a W&B sweep file on this machine, without an account: a grid, draws of a random search, or one cell.

A cell that is finished is skipped, one that was broken off goes on from its last checkpoint, one that fails does not
stop the others. One cell runs on each CUDA device, else one at a time. Ctrl-C lets them save and ends; the same
command goes on.
Usage: python scripts/sweep_local.py configs/sweeps/demo.yaml [--list] [--cell 2] [--jobs 4] [--runs_dir runs/demo]
       python scripts/sweep_local.py configs/sweeps/lrsa_search.yaml --count 8 [--seed 1]
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.errors import InputError
from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt
from lrsa_lightning.sweep import SweepRunner, conclude, make_cells, make_slots, read_sweep


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="configs/sweeps/*.yaml, or your own")
    parser.add_argument("--runs_dir", type=Path, help="folder of the cells' run directories; runs/<sweep> otherwise")
    parser.add_argument("--cell", type=PositiveInt, metavar="K", help="this one alone, counted from 1")
    parser.add_argument("--list", action="store_true", help="print the cells and their commands, run nothing")
    parser.add_argument("--method", choices=["grid", "random"], help="instead of the file's")
    parser.add_argument("--count", type=PositiveInt, metavar="N", help="most cells; the file's run_cap otherwise")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of a random search")
    parser.add_argument("--jobs", type=PositiveInt, metavar="N", help="cells at a time, which share the devices")
    return parser.parse_args(arguments)


def chosen(cells: list, number: int | None) -> list:
    """All cells, or the one asked for."""
    if number is None:
        return cells
    if not 1 <= number <= len(cells):
        raise InputError(f"--cell {number}: the sweep has cells 1 to {len(cells)}")
    return [cells[number - 1]]


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Runs the cells; prints the table, notes and files of the report. Exit status 1 where a cell failed."""
    options = parse(arguments)
    sweep = read_sweep(options.sweep, options.method)
    runs_dir = options.runs_dir or Path("runs") / sweep.name
    cells = chosen(make_cells(sweep, options.count, options.seed), options.cell)
    runner = SweepRunner(sweep, runs_dir, [] if options.list else make_slots(options.jobs))
    if options.list:
        for cell in cells:
            print(f"{cell.name}\n  {shlex.join(runner.command(cell))}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = runner.run(cells)
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        sys.exit(130)
    outcome = conclude(sweep, runs_dir, results)
    print(f"\n{outcome.table}\n")
    for note in outcome.notes:
        print(f"note: {note}")
    if outcome.files:
        print("wrote:", *outcome.files, sep="\n  ")
    if any(result.status for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
