"""Samples on disk: made once, then used for every checkpoint and mode."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock

from lrsa_lightning.data.workers import end_with_parent
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.files.json_lines import read_lines
from lrsa_lightning.ruler.progress import ProgressLines
from lrsa_lightning.ruler.samples import NotAtThisLength, SampleMaker, SampleSettings, check_row
from lrsa_lightning.ruler.tasks import source_files

log = logging.getLogger(__name__)

# Tokens, which one process makes in about three seconds.
_WORTH_PROCESSES = 500_000
# Changes when the same settings would give other samples.
_FORMAT = 1
_MANIFEST, _SAMPLES, _LOCKS = "manifest.json", "validation.jsonl", ".locks"
_FIELDS = {"id": str, "task": str, "max_length": int, "input": str, "answer_prefix": str, "outputs": list}
_FIELDS |= {"answer": str, "depths": list, "length": int}


class SampleStore:
    """A folder with ``<length>/<task>/validation.jsonl`` in RULER's format, each file beside its manifest."""

    def __init__(self, folder: Path, tokenizer, settings: SampleSettings):
        """The folder may not exist yet; the tokenizer is the model's."""
        self.folder = folder
        self._tokenizer = tokenizer
        self._settings = settings
        described = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
        self._tokenizer_hash = _sha256(described.encode("utf-8"))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds samples of a store."""
        return any(folder.glob(f"*/*/{_MANIFEST}"))

    @classmethod
    def in_cache(cls, cache_dir: Path, tokenizer, settings: SampleSettings) -> "SampleStore":
        """The store of these settings in a cache."""
        store = cls(cache_dir, tokenizer, settings)
        key = _sha256(json.dumps([store.manifest(task) for task in ("niah_single_2", "qa_1", "qa_2", "cwe")]).encode())
        store.folder = cache_dir / "ruler" / key[:20]
        return store

    def manifest(self, task: str) -> dict[str, Any]:
        """All that a task's samples depend on, besides their length and number."""
        settings = self._settings
        paths = settings.sources.given()
        return {
            "format": _FORMAT,
            "task": task,
            "seed": settings.seed,
            "template": settings.template,
            "official_compat": False,  # an option of earlier versions; without it their samples would be made again
            "tokenizer": self._tokenizer_hash,
            "files": {name: _sha256(paths[name].read_bytes()) for name in source_files(task, settings.sources)},
        }

    def hashes(self, tasks: Sequence[str]) -> dict[str, str]:
        """Hashes of the files that the tasks' samples depend on, by name."""
        return {name: digest for task in tasks for name, digest in self.manifest(task)["files"].items()}

    def path(self, task: str, length: int) -> Path:
        """The file of a task's samples at a length."""
        return self.folder / str(length) / task / _SAMPLES

    def samples(
        self, task: str, length: int, num_samples: int, made: Callable[[], object] = lambda: None
    ) -> list[dict[str, Any]]:
        """The first samples: from the store, or new ones where it has too few; calls ``made`` after each new one.

        One process at a time makes samples of a task and length. Others wait for it, and then read them.

        Raises:
            InputError: the task is unknown, a file of it is missing, a sample cannot fit, or the store's samples are
                of other settings.
        """
        with self._alone(task, length):
            rows = self._read(task, length)
            if rows is None or len(rows) < num_samples:
                rows = SampleMaker(task, self._tokenizer, length, self._settings).make(num_samples, made)
                self._write(task, length, rows)
        return rows[:num_samples]

    @contextmanager
    def _alone(self, task: str, length: int) -> Iterator[None]:
        """The operating system's lock, which is tried again and again: a collective would time out."""
        path = self.folder / _LOCKS / f"{length}-{task}.lock"
        lock = FileLock(path)
        with suppress(OSError):  # a folder that cannot be written does not change either
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def samples_that_fit(
        self,
        cells: Iterable[tuple[str, int]],
        num_samples: int,
        log_skipped: Callable[[str], None] | None,
        announces: bool = True,
        num_workers: int = 1,
    ) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The first samples by task and length. A process that makes samples logs its progress.

        Args:
            cells: tasks and lengths.
            num_samples: of each.
            log_skipped: logs a task that does not fit a length, instead of an error.
            announces: whether this process says what is missing.
            num_workers: processes that make samples, where there are many tokens to make.

        Raises:
            InputError: as `samples`.
        """
        cells = [*cells]
        missing = [cell for cell in cells if self._num_samples(*cell) < num_samples]
        if missing and announces:
            names = ", ".join(f"{task}/{length}" for task, length in missing)
            log.info("RULER: making %d samples each of %s", num_samples, names)
        progress, found = ProgressLines("RULER samples", len(missing) * num_samples, "samples"), {}
        if num_workers > 1 and num_samples * sum(length for _, length in missing) > _WORTH_PROCESSES:
            for number, path in enumerate(make_in_parallel(self, missing, num_samples, num_workers, log.debug)):
                progress.done = (number + 1) * num_samples - 1
                progress.advance("/".join(path.parts[-2:-4:-1]))
            missing = []
        for task, length in cells:
            try:
                found[task, length] = self.samples(
                    task, length, num_samples, partial(progress.advance, f"{task}/{length}")
                )
            except NotAtThisLength as error:
                if log_skipped is None:
                    raise
                log_skipped(f"{error}; left out")
            if (task, length) in missing:  # by this process or by another
                progress.done = (missing.index((task, length)) + 1) * num_samples
        return found

    def _num_samples(self, task: str, length: int) -> int:
        """The number of samples in the store, as the manifest says."""
        path = self.path(task, length)
        return _read_manifest(path.with_name(_MANIFEST)).get("num_samples", 0) if path.exists() else 0

    def _read(self, task: str, length: int) -> list[dict[str, Any]] | None:
        path = self.path(task, length)
        if not path.exists():
            return None
        manifest = _read_manifest(path.with_name(_MANIFEST))
        expected = self.manifest(task) | {"length": length}
        differing = [key for key, value in expected.items() if manifest.get(key) != value]
        if differing:
            raise InputError(
                f"{path} holds samples of other settings ({', '.join(differing)}): give another folder, or remove it"
            )
        if manifest.get("sha256") != _sha256(path.read_bytes()):
            raise InputError(f"{path} is not what {_MANIFEST} beside it says (sha256): remove both to make it again")
        rows = []
        for number, row in read_lines(path):  # the manifest does not vouch for them: their writer may have written it
            check_row(row, _FIELDS, f"{path}, line {number}")
            if (row["task"], row["max_length"]) != (task, length):
                raise InputError(f"{path}, line {number}: a sample of {row['task']} at length {row['max_length']}")
            rows.append(row)
        return rows

    def _write(self, task: str, length: int, rows: list[dict[str, Any]]) -> None:
        """Writes both files, the samples last: samples on disk have their manifest."""
        path = self.path(task, length)
        content = "".join(json.dumps(row) + "\n" for row in rows)
        manifest = {
            **self.manifest(task),
            "length": length,
            "num_samples": len(rows),
            "sha256": _sha256(content.encode("utf-8")),
        }
        path.unlink(missing_ok=True)
        write_text(path.with_name(_MANIFEST), json.dumps(manifest, indent=2) + "\n")
        write_text(path, content)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}, which says what the samples beside it are, cannot be read: remove both") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} does not say what the samples beside it are: remove both")
    return manifest


def make_in_parallel(
    store: SampleStore,
    cells: Iterable[tuple[str, int]],
    num_samples: int,
    num_workers: int,
    log_skipped: Callable[[str], None] | None = None,
) -> Iterator[Path]:
    """Makes the samples that a store lacks, each task and length in one process; yields each file when it exists.

    The arguments are those of `SampleStore.samples_that_fit`.

    Raises:
        InputError: as `SampleStore.samples`.
    """
    with ProcessPoolExecutor(num_workers, get_context("fork"), initializer=_begin_worker) as pool:
        # The longest come first, so that no long one runs alone at the end.
        longest_first = sorted(cells, key=lambda cell: -cell[1])
        made = {pool.submit(store.samples, *cell, num_samples): cell for cell in longest_first}
        try:
            for future in as_completed(made):
                if isinstance(error := future.exception(), NotAtThisLength) and log_skipped is not None:
                    log_skipped(f"{error}; left out")
                    continue
                future.result()
                yield store.path(*made[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker() -> None:
    """A forked tokenizer must not use threads, and each worker has one core; the process itself uses all."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
