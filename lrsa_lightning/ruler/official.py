"""Samples that RULER's own scripts made, for exact comparability: its JSONL files (scripts/data/prepare.py)."""

import hashlib
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.json_lines import read_lines
from lrsa_lightning.ruler.choices import check_choice
from lrsa_lightning.ruler.samples import check_row
from lrsa_lightning.ruler.tasks import TASKS, check_tasks, find_task

# Of a folder without lengths, and of run.sh's folder of all lengths.
_FLAT, _BY_LENGTH = ("*/validation.jsonl", "*.jsonl"), "*/data/*/validation.jsonl"
_LAYOUTS = "<task>/validation.jsonl, <task>.jsonl or <length>/data/<task>/validation.jsonl"
_FIELDS = {"index": int, "input": str, "answer_prefix": str, "outputs": list, "length": int}
# In the ids, instead of the seed of our own samples: the files do not say theirs.
_ORIGIN = "official"


class OfficialSamples:
    """The files of a folder that hold the chosen tasks and lengths."""

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        skip_missing: bool = False,
    ):
        """
        Args:
            folder: written by RULER's prepare.py or run.sh.
            tasks: the tasks to read; all in the folder when None.
            lengths: the lengths to read; all in the folder when None. For files without a length in their path it is
                their single length.
            skip_missing: leave out tasks and lengths without a file, instead of an error.

        Raises:
            InputError: a folder or file is named after no task, a task or length has no file or two, a length is not
                known, or a list is empty or holds a value twice.
        """
        if tasks is not None:
            check_tasks(tasks, "--tasks")
        if lengths is not None:
            check_choice(lengths, "--lengths")
        self._folder = folder
        paths = self._find(lengths)
        self.paths: dict[tuple[str, int], Path] = {}
        for task, length in product(tasks or [None], lengths or [None]):
            cells = [cell for cell in paths if task in (None, cell[0]) and length in (None, cell[1])]
            if not cells and not skip_missing:
                what = " at length ".join(str(name) for name in (task or "any task", length) if name)
                raise InputError(
                    f"--samples {folder} has no file of {what}: choose others with --tasks and --lengths, or leave it "
                    "out with --skip_missing"
                )
            self.paths |= {cell: paths[cell] for cell in cells}
        if not self.paths:
            raise InputError(f"--samples {folder} has no file of any chosen task and length")

    @property
    def lengths(self) -> list[int]:
        """The lengths of the samples, ascending."""
        return sorted({length for _, length in self.paths})

    def hashes(self) -> dict[str, str]:
        """Hashes of the files, by length and task."""
        return {
            f"{length}/{task}": hashlib.sha256(path.read_bytes()).hexdigest()
            for (task, length), path in self.paths.items()
        }

    def settings(self, template: str) -> dict[str, Any]:
        """All that the results depend on besides the files. The template's end token ends an answer."""
        return {"format": "RULER", "seed": _ORIGIN, "template": template}

    def read(self, tokenizer, num_samples: int) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The first samples of each file, as rows of `make_samples`, by task and length.

        Raises:
            InputError: a file is empty, a line is malformed, or a sample is longer than its length.
        """
        return {cell: self._read(path, *cell, tokenizer, num_samples) for cell, path in self.paths.items()}

    def _find(self, lengths: Sequence[int] | None) -> dict[tuple[str, int], Path]:
        """All files of the folder by task and length, sorted by length, then as `TASKS`."""
        flat = [path for layout in _FLAT for path in sorted(self._folder.glob(layout))]
        by_length = [path for path in sorted(self._folder.glob(_BY_LENGTH)) if path.parts[-4].isdecimal()]
        if not flat and not by_length:
            raise InputError(
                f"--samples {self._folder} holds no samples, expected {_LAYOUTS} of RULER's prepare.py, or a folder of "
                "`lrsa ruler`"
            )
        if flat and (lengths is None or len(lengths) != 1):
            raise InputError(f"{flat[0]} does not say its length: give --lengths with the one of prepare.py")
        paths = [(path, lengths[0]) for path in flat] + [(path, int(path.parts[-4])) for path in by_length]
        found: dict[tuple[str, int], Path] = {}
        for path, length in paths:
            cell = _task_of(path), length
            if found.setdefault(cell, path) is not path:
                raise InputError(f"{found[cell]} and {path} both hold {cell[0]} at length {length}: remove one")
        order = sorted(found, key=lambda cell: (cell[1], [*TASKS].index(cell[0])))
        return {cell: found[cell] for cell in order}

    @staticmethod
    def _read(path: Path, task: str, length: int, tokenizer, num_samples: int) -> list[dict[str, Any]]:
        spec, rows = find_task(task), []
        for number, given in islice(read_lines(path), num_samples):
            row = {"answer_prefix": ""} | given  # before May 2025 RULER wrote the prefix at the end of the input
            check_row(row, _FIELDS, f"{path}, line {number}")
            ids = tokenizer(row["input"] + row["answer_prefix"], add_special_tokens=False, verbose=False)["input_ids"]
            num_tokens = len(ids) + spec.tokens_to_generate
            if num_tokens > length:
                raise InputError(
                    f"{path}, line {number}: {num_tokens} tokens with this tokenizer, {spec.tokens_to_generate} of "
                    f"them new, are more than length {length}: run prepare.py with the model's tokenizer, or give the "
                    "right --lengths"
                )
            rows.append(
                {name: row[name] for name in ("input", "answer_prefix", "outputs")}
                | {"id": f"{task}-{length}-{_ORIGIN}-{len(rows)}", "task": task, "max_length": length}
                | {"answer": spec.answer(row["outputs"]), "depths": [], "length": num_tokens}
            )
        if not rows:
            raise InputError(f"{path} is empty: make it again with RULER's prepare.py")
        return rows


def _task_of(path: Path) -> str:
    """The task that a file or its folder is named after."""
    task = path.parent.name if path.name == "validation.jsonl" else path.stem
    try:
        find_task(task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return task
