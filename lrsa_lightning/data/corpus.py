"""The files of the training and of the validation, how often each is taken, and how rows become samples."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from lrsa_lightning.data.files import files_of
from lrsa_lightning.data.prepared_folder import hash_of
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sources import SourceName, has_fields, read_samples
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Reads the samples of the training and of the validation; `LongContextDataModule` describes the attributes."""

    train_files: list[str]
    val_files: list[str]
    source: SourceName
    fields: Mapping[str, str]
    mixture: Mapping[str, float]
    bad_rows: Literal["error", "skip"]
    seed: int
    _hashes: dict[str, str] = field(default_factory=dict, init=False)

    def check(self) -> None:
        """Checks the names, and each file up to its first sample.

        Raises:
            InputError: no file is named, a file is named twice, does not exist or begins with a malformed row, or a
                weight of the mixture or the fields fit no file.
        """
        if not self.train_files:
            raise InputError("data.train_files is empty: name at least one .json, .jsonl or .parquet file or hub id")
        files = self.train_files + self.val_files
        for file in self.train_files:
            weight_of(file, self.train_files, self.mixture)
        for file in files:
            next(self._read(file), None)
        _check_different("data.train_files", self.train_files)
        _check_different("data.val_files", self.val_files)
        if self.fields and not any(has_fields(file, self.fields) for file in files):
            columns = ", ".join(map(repr, self.fields.values()))
            raise InputError(f"data.fields fits no file: none of {', '.join(files)} has the columns {columns}")
        trained = {_identity(file) for file in self.train_files}
        for file in self.val_files:
            if _identity(file) in trained:
                log.warning(
                    "data.val_files has %s, which is a train file too: val/loss does not measure new text", file
                )

    def samples(self, what: Literal["train", "val"]) -> list[Sample]:
        """The samples of the train files, each as often as the mixture says, or those of the validation files.

        Raises:
            InputError: a row is malformed, or the mixture leaves no sample.
        """
        if what == "val":
            return [sample for file in self.val_files for sample in self._read(file)]
        samples = []
        for file in self.train_files:
            samples += mix(self._read(file), weight_of(file, self.train_files, self.mixture), self.seed)
        if not samples:
            raise InputError("data.mixture leaves no sample of data.train_files: raise a weight")
        return samples

    def firsts(self, what: Literal["train", "val"] = "val") -> Iterator[Sample]:
        """The first sample of each file; for the validation, the train files come first."""
        for file in self._files(what):
            yield from islice(self._read(file), 1)

    def settings(self, what: Literal["train", "val"]) -> dict[str, Any]:
        """What the samples, and those they may be extended with, depend on besides the files' content."""
        return {
            "names": [Path(file).name for file in self._files(what)],
            "source": self.source,
            "fields": self.fields,
            "mixture": [weight_of(file, self.train_files, self.mixture) for file in self.train_files],
            "bad_rows": self.bad_rows,
        }

    def contents(self, what: Literal["train", "val"]) -> list[str]:
        """A hash of each file's bytes, or a hub data set's name; for the validation, the train files come first."""
        for file in self._files(what):
            if file not in self._hashes:
                path = files_of(file)
                self._hashes[file] = file if path is None else hash_of(path)
        return [self._hashes[file] for file in self._files(what)]

    def train_content(self) -> list[list[str]]:
        """Name and content of each train file, in order."""
        names = [Path(file).name for file in self.train_files]
        return [list(pair) for pair in zip(names, self.contents("train"), strict=True)]

    def _files(self, what: str) -> list[str]:
        return self.train_files + (self.val_files if what == "val" else [])

    def _read(self, file: str) -> Iterator[Sample]:
        skipped: list[str] | None = [] if self.bad_rows == "skip" else None
        source = "auto" if self.source == "demo" else self.source
        yield from read_samples(file, source, self.fields, skipped)
        if skipped:
            log.warning("%d malformed rows of %s are skipped; the first: %s", len(skipped), file, skipped[0])


def names_of(option: str, files: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The names of one file or several, for messages and keys.

    Raises:
        InputError: these are no names.
    """
    try:
        return [os.fspath(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    except TypeError:
        raise InputError(f"{option} is {files!r}, but must be names of files or hub ids") from None


def demo_file(train_files: list[str], cache_dir: str) -> str:
    """The train file that the demo makes.

    Raises:
        InputError: train files were given too.
    """
    if train_files:
        raise InputError(
            f"data.source demo makes its own train file: leave out data.train_files {train_files[0]}, or set "
            "data.source to auto"
        )
    return str(Path(cache_dir) / "demo" / "train.jsonl")


def _check_different(option: str, files: Sequence[str]) -> None:
    known: dict[Path | str, str] = {}
    for file in files:
        identity = _identity(file)
        if identity in known:
            twice = f", or take its samples twice with data.mixture {{{Path(file).name}: 2}}"
            raise InputError(
                f"{option} names {known[identity]} and {file}, which are one file: leave one out"
                + (twice if option == "data.train_files" else "")
            )
        known[identity] = file


def _identity(file: str) -> Path | str:
    path = files_of(file)
    return file if path is None else path.resolve()


def weight_of(file: str, files: Sequence[str], mixture: Mapping[str, float]) -> float:
    """A file's weight, by its path, its name, or its name without suffixes; 1 where the mixture has none.

    Raises:
        InputError: a name of the mixture belongs to no file.
    """
    if unknown := [name for name in mixture if not any(name in _names_of_file(other) for other in files)]:
        known = ", ".join(Path(other).name for other in files)
        raise InputError(f"data.mixture names {unknown[0]!r}, which is none of data.train_files: {known}")
    return next((weight for name, weight in mixture.items() if name in _names_of_file(file)), 1.0)


def _names_of_file(file: str) -> tuple[str, str, str]:
    name = Path(file).name
    return file, name, name.split(".")[0]


def mix(samples: Iterable[Sample], weight: float, seed: int) -> list[Sample]:
    """Each sample ``weight`` times; (seed, id) decide on the fraction. Copies have ids of their own."""
    mixed = []
    for sample in samples:
        times = int(weight) + (Random(f"{seed}:{sample.id}").random() < weight % 1)
        mixed += [sample if copy == 0 else replace(sample, id=f"{sample.id}#{copy + 1}") for copy in range(times)]
    return mixed
