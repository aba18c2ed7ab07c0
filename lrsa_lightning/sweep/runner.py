"""Runs the cells of a sweep as processes, one in each slot at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.commands import build_command, cell_environment, check_options
from lrsa_lightning.sweep.definition import Sweep
from lrsa_lightning.sweep.devices import Slot
from lrsa_lightning.sweep.records import BROKEN, FINISHED, NEW, CellRecord

_POLL_SECONDS = 0.1


class Result(NamedTuple):
    """How a cell ended.

    Attributes:
        cell: the cell.
        status: exit status of its last process; None where another `lrsa sweep` runs it.
    """

    cell: Cell
    status: int | None


class _Running(NamedTuple):
    cell: Cell
    record: CellRecord
    process: subprocess.Popen
    slot: Slot
    lock: int
    since: float


class SweepRunner:
    """Skips finished cells and resumes broken ones. A failed cell does not stop the others."""

    def __init__(
        self,
        sweep: Sweep,
        runs_dir: Path,
        slots: Sequence[Slot],
        grace_seconds: float = 120.0,
        say: Callable[[str], None] = print,
    ):
        """
        Args:
            sweep: of `read_sweep`.
            runs_dir: folder of the cells' run directories.
            slots: the devices of the cells that run at the same time.
            grace_seconds: time in which stopped cells must save and end.
            say: prints a line for the user.
        """
        self.sweep = sweep
        self.runs_dir = runs_dir
        self._free = list(slots)
        self._grace_seconds = grace_seconds
        self._say = say
        self._running: list[_Running] = []
        self._statuses: dict[Cell, int | None] = {}

    def run(self, cells: Sequence[Cell]) -> list[Result]:
        """Runs cells until all have ended; the results are in the order of the cells.

        Raises:
            InputError: a run directory belongs to another command, or `lrsa` refuses the options of the cells.
            KeyboardInterrupt: after the running cells have saved and ended.
        """
        records = {cell: CellRecord(self.runs_dir, cell.name, self.command(cell)) for cell in cells}
        if new := [record.command for record in records.values() if record.state() == NEW]:
            check_options(self.sweep, new[0])
        try:
            for number, (cell, record) in enumerate(records.items(), 1):
                while not self._free:
                    self._reap()
                self._begin(cell, record, f"[{number}/{len(cells)}] {cell.name}")
            while self._running:
                self._reap()
        finally:
            self._stop()
        return [Result(cell, self._statuses[cell]) for cell in cells]

    def command(self, cell: Cell) -> list[str]:
        """The command of W&B's agent with the run directory. The same command starts and resumes the cell."""
        where = [f"--runs_dir={self.runs_dir}", f"--run_name={cell.name}", "--ckpt_path=last"]
        return [*build_command(self.sweep, cell.parameters), *where]

    def _begin(self, cell: Cell, record: CellRecord, title: str) -> None:
        lock = record.lock()
        if lock is None:
            self._say(f"{title}: another process runs it")
            self._statuses[cell] = None
            return
        state = record.state()
        if state == FINISHED:
            os.close(lock)
            self._say(f"{title}: finished already")
            self._statuses[cell] = 0
            return
        how = "starts" if state != BROKEN else "resumes" if record.clear_start() else "starts over"
        slot = self._free.pop(0)
        self._say(f"{title}: {how} on {slot.name}, output in {record.log}")
        record.write(None)
        try:
            process = self._start(record, slot, lock)
        except OSError as error:  # the program does not exist
            record.log.write_text(f"{error}\n", encoding="utf-8")
            process = subprocess.Popen(["sh", "-c", "exit 127"])
        self._running.append(_Running(cell, record, process, slot, lock, time.monotonic()))

    def _start(self, record: CellRecord, slot: Slot, lock: int) -> subprocess.Popen:
        with record.log.open("wb") as log:
            return subprocess.Popen(
                record.command,
                env={**cell_environment(), **slot.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # only this process receives Ctrl-C, and stops the cells once
            )

    def _reap(self) -> None:
        ended = [one for one in self._running if one.process.poll() is not None]
        for one in ended:
            self._end(one)
        if not ended:
            time.sleep(_POLL_SECONDS)

    def _end(self, one: _Running) -> None:
        seconds = time.monotonic() - one.since
        status = self._statuses[one.cell] = self._close(one)
        self._free.append(one.slot)
        if status == 0:
            self._say(f"{one.cell.name}: finished in {seconds:.0f} s")
        else:
            self._say(f"{one.cell.name}: failed with exit status {status}, after {seconds:.0f} s:\n{one.record.tail()}")

    def _close(self, one: _Running) -> int:
        """Records the exit status of a cell's process, and unlocks the cell."""
        one.record.write(one.process.returncode)
        os.close(one.lock)
        self._running.remove(one)
        return one.process.returncode

    def _stop(self) -> None:
        """Lets the running cells save and end. After the grace time, or at a second Ctrl-C, they are killed."""
        if not self._running:
            return
        self._say(f"stopping {len(self._running)} cells, which save first; a second Ctrl-C kills them")
        try:
            for one in self._running:
                one.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + self._grace_seconds
            while time.monotonic() < until and any(one.process.poll() is None for one in self._running):
                time.sleep(_POLL_SECONDS)
        finally:
            for one in list(self._running):
                if one.process.poll() is None:
                    os.killpg(one.process.pid, signal.SIGKILL)  # with its own children
                one.process.wait()
                self._close(one)
