"""`lrsa sweep`: the cells of a W&B sweep file on this machine."""

import shlex
import signal
import sys
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import PositiveInt

_DESCRIPTION = """Runs the grid of a W&B sweep file on this machine, without an account.

A finished cell is skipped, an interrupted cell resumes from its last checkpoint, a failed cell does not stop the
others. Each CUDA device or NPU runs one cell at a time; without a device, one cell runs at a time. Ctrl-C lets the
cells save and ends the sweep; the same command resumes it. Random and Bayesian search need `wandb sweep` and
`wandb agent`.
Example: lrsa sweep configs/sweeps/demo.yaml --jobs 4 --runs_dir runs/demo
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa sweep")
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="configs/sweeps/*.yaml, or your own")
    parser.add_argument("--runs_dir", type=Path, help="folder of the cells' run directories; runs/<sweep> otherwise")
    parser.add_argument("--cell", type=PositiveInt, metavar="K", help="run only this cell, counted from 1")
    parser.add_argument("--list", action="store_true", help="print the cells and their commands, run nothing")
    parser.add_argument("--count", type=PositiveInt, metavar="N", help="most cells; the file's run_cap otherwise")
    parser.add_argument("--jobs", type=PositiveInt, metavar="N", help="cells at a time; the devices are split equally")
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Runs the cells; prints the table, notes and files of the report. Exit status 1 where a cell failed."""
    options = make_parser().parse_args(args)
    from lrsa_lightning.sweep import SweepRunner, conclude, make_cells, make_slots, read_sweep

    sweep = read_sweep(options.sweep)
    runs_dir = options.runs_dir or Path("runs") / sweep.name
    cells = make_cells(sweep, options.count)
    if options.cell is not None:
        if options.cell > len(cells):
            raise InputError(f"--cell {options.cell}: the sweep has cells 1 to {len(cells)}")
        cells = [cells[options.cell - 1]]
    runner = SweepRunner(sweep, runs_dir, [] if options.list else make_slots(options.jobs))
    if options.list:
        for cell in cells:
            print(f"{cell.name}\n  {shlex.join(runner.command(cell))}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = runner.run(cells)
    except KeyboardInterrupt:
        print("stopped: the same command resumes the sweep", file=sys.stderr)
        sys.exit(130)
    outcome = conclude(sweep, runs_dir, results)
    print(f"\n{outcome.table}\n")
    for note in outcome.notes:
        print(f"note: {note}")
    if outcome.files:
        print("wrote:", *outcome.files, sep="\n  ")
    if any(result.status for result in results):
        sys.exit(1)
