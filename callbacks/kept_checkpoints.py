"""Which of the complete checkpoints of a folder are kept, and which are the last and the best."""

import json
import re
from pathlib import Path
from typing import Literal

from lrsa_lightning.checkpoints.atomic_files import BEST, LAST, PARTIAL, link, remove
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.files.disk import BestEffort

_SCORES = "scores.json"


class KeptCheckpoints:
    """The checkpoints ``step=<n>.ckpt`` of a folder, the links to them, their scores, and the rules that keep them.

    It knows complete checkpoints only. A link, a score or a removal that fails costs nothing but a warning.

    Attributes:
        folder: of the checkpoints.
        newest: step of the newest checkpoint of this run; 0 if there is none.
        scores: by step.
    """

    def __init__(
        self, keep_last: int | None, keep_every_n_steps: int | None, mode: Literal["min", "max"], keep_best: int
    ):
        """Args are those of `Checkpoints`."""
        self.folder = Path()
        self.newest = 0
        self.scores: dict[int, float] = {}
        self._keep_last = keep_last
        self._keep_every_n_steps = keep_every_n_steps
        self._mode = mode
        self._keep_best = keep_best
        self._effort = BestEffort(f"{LAST}, {BEST} and {_SCORES}")

    def path(self, step: int) -> Path:
        return self.folder / f"step={step}.ckpt"

    def remove_interrupted(self) -> None:
        """Removes what interrupted writes have left."""
        for partial in self.folder.glob(f".*{PARTIAL}"):
            remove(partial)

    def read_scores(self, step: int) -> None:
        """Reads the scores up to a step: the run may resume from an earlier one, and measures later steps again."""
        file = self.folder / _SCORES
        scores = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.scores = {int(scored): value for scored, value in scores.items() if int(scored) <= step}

    def name_last(self) -> None:
        """Makes the newest the last one, and removes those that no rule keeps any more."""
        with self._effort.attempt():
            link(self.folder / LAST, self.path(self.newest))
            self._prune()

    def save_scores(self) -> None:
        """Writes the scores, names the best checkpoint, and removes those that no rule keeps any more."""
        with self._effort.attempt():
            write_text(self.folder / _SCORES, json.dumps(self.scores))
            if best := self.best():
                link(self.folder / BEST, self.path(best[0]))
            self._prune()

    def best(self) -> list[int]:
        """Steps of the best checkpoints, the best first; of two equal ones the earlier first."""
        sign = 1 if self._mode == "min" else -1
        scored = [step for step in self.scores if self.path(step).exists()]
        return sorted(scored, key=lambda step: (sign * self.scores[step], step))[: self._keep_best]

    def sum_up(self) -> None:
        """Warns of the number of failed writes, if any."""
        self._effort.sum_up()

    def _prune(self) -> None:
        """Removes the checkpoints that no rule keeps. Those of later steps stay: the run resumed from before them."""
        if self._keep_last is None:
            return
        files = self.folder.glob("step=*.ckpt")
        found = {int(name[1]): path for path in files if (name := re.fullmatch(r"step=(\d+)\.ckpt", path.name))}
        steps = sorted(step for step in found if step <= self.newest)
        kept = {*steps[-self._keep_last :], *self.best()}
        kept |= {step for step in steps if self._keep_every_n_steps and step % self._keep_every_n_steps == 0}
        for step in set(steps) - kept:
            remove(found[step])
