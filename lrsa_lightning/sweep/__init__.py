"""Runs the grid of a W&B sweep file on this machine, without an account: cells, processes, a table, the report."""

from lrsa_lightning.sweep.cells import Cell, make_cells
from lrsa_lightning.sweep.commands import build_command
from lrsa_lightning.sweep.definition import Sweep, read_sweep
from lrsa_lightning.sweep.devices import Slot, make_slots
from lrsa_lightning.sweep.outcome import Outcome, conclude
from lrsa_lightning.sweep.runner import Result, SweepRunner

__all__ = [
    "Cell",
    "Outcome",
    "Result",
    "Slot",
    "Sweep",
    "SweepRunner",
    "build_command",
    "conclude",
    "make_cells",
    "make_slots",
    "read_sweep",
]
