"""The files of the training and of the validation, how often each is taken, and how rows become samples."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from lrsa_lightning.data.data_file import SUFFIXES, DataFile
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sources import SourceName, has_fields, read_samples
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Reads the samples of the training and of the validation; `LongContextDataModule` describes the attributes."""

    train_files: Sequence[str | DataFile]
    val_files: Sequence[str | DataFile]
    source: SourceName
    fields: Mapping[str, str]
    mixture: Mapping[str, float]
    bad_rows: Literal["error", "skip"]
    seed: int
    _hashes: dict[DataFile, str] = field(default_factory=dict, init=False)
    _listed: dict[str, list[DataFile]] = field(default_factory=dict, init=False)

    def check(self) -> None:
        """Checks the names, and each file up to its first sample.

        Raises:
            InputError: no file is named, a file is named twice, does not exist or begins with a malformed row, or a
                weight of the mixture or the fields fit no file.
        """
        if not self.train_files:
            kinds = f"{', '.join(SUFFIXES)} file, a folder of them or a hub id"
            raise InputError(f"data.train_files is empty: name at least one {kinds}")
        train, val = self._files("train"), self._own("val")
        for file in train:
            weight_of(file, train, self.mixture)
        for file in (*train, *val):
            next(self._read(file), None)
        _check_different("data.train_files", train)
        _check_different("data.val_files", val)
        named = [file for file in (*train, *val) if file.fields is None]
        if self.fields and not any(has_fields(file, self.fields) for file in named):
            columns = ", ".join(map(repr, self.fields.values()))
            files = ", ".join(file.path for file in named)
            raise InputError(f"data.fields fits no file: none of {files} has the columns {columns}")
        trained = {file.identity for file in train}
        for file in val:
            if file.identity in trained:
                log.warning(
                    "data.val_files has %s, which is a train file too: val/loss does not measure new text", file.path
                )

    def samples(self, what: Literal["train", "val"]) -> list[Sample]:
        """The samples of the train files, each as often as the mixture says, or those of the validation files.

        Raises:
            InputError: a row is malformed, or the mixture leaves no sample.
        """
        if what == "val":
            return [sample for file in self._own("val") for sample in self._read(file)]
        samples, files = [], self._own("train")
        for file in files:
            samples += mix(self._read(file), weight_of(file, files, self.mixture), self.seed)
        if not samples:
            raise InputError("data.mixture leaves no sample of data.train_files: raise a weight")
        return samples

    def firsts(self, what: Literal["train", "val"] = "val") -> Iterator[Sample]:
        """The first sample of each file; for the validation, the train files come first."""
        for file in self._files(what):
            yield from islice(self._read(file), 1)

    def settings(self, what: Literal["train", "val"]) -> dict[str, Any]:
        """What the samples, and those they may be extended with, depend on besides the files' content."""
        train = self._own("train")
        return {
            "names": [Path(file.path).name for file in self._files(what)],
            "options": [file.options for file in self._files(what)],
            "source": self.source,
            "fields": self.fields,
            "mixture": [weight_of(file, train, self.mixture) for file in train],
            "bad_rows": self.bad_rows,
        }

    def contents(self, what: Literal["train", "val"]) -> list[str]:
        """`DataFile.content` of each file; for the validation, the train files come first."""
        return [self._content(file) for file in self._files(what)]

    def train_content(self) -> list[list[str]]:
        """Name and content of each train file, in order."""
        return [[Path(file.path).name, self._content(file)] for file in self._own("train")]

    def _content(self, file: DataFile) -> str:
        key = replace(file, fields=None)
        if key not in self._hashes:
            self._hashes[key] = file.content
        return self._hashes[key]

    def _files(self, what: str) -> list[DataFile]:
        return self._own("train") + (self._own("val") if what == "val" else [])

    def _own(self, what: str) -> list[DataFile]:
        """The files of an option, with those in its folders. A folder that changes later changes no run."""
        if what not in self._listed:
            entries = self.train_files if what == "train" else self.val_files
            self._listed[what] = [file for entry in entries for file in DataFile.of(entry).files()]
        return self._listed[what]

    def _read(self, file: DataFile) -> Iterator[Sample]:
        skipped: list[str] | None = [] if self.bad_rows == "skip" else None
        source = "auto" if self.source == "demo" else self.source
        yield from read_samples(file, source, self.fields, skipped)
        if skipped:
            log.warning("%d malformed rows of %s are skipped; the first: %s", len(skipped), file.path, skipped[0])


def demo_file(train_files: Sequence[DataFile], cache_dir: str) -> DataFile:
    """The train file that the demo makes.

    Raises:
        InputError: train files were given too.
    """
    if train_files:
        raise InputError(
            f"data.source demo makes its own train file: leave out data.train_files {train_files[0].path}, or set "
            "data.source to auto"
        )
    return DataFile(str(Path(cache_dir) / "demo" / "train.jsonl"))


def _check_different(option: str, files: Sequence[DataFile]) -> None:
    known: dict[Any, str] = {}
    for file in files:
        if file.identity in known:
            twice = f", or take its samples twice with data.mixture {{{Path(file.path).name}: 2}}"
            raise InputError(
                f"{option} names {known[file.identity]} and {file.path}, which are one file: leave one out"
                + (twice if option == "data.train_files" else "")
            )
        known[file.identity] = file.path


def weight_of(file: str | DataFile, files: Sequence[str | DataFile], mixture: Mapping[str, float]) -> float:
    """A file's weight, by its path, its name, its name without suffixes, or its folder; 1 where the mixture has none.

    Raises:
        InputError: a name of the mixture belongs to no file.
    """
    if unknown := [name for name in mixture if not any(name in _names_of(other) for other in files)]:
        known = ", ".join(Path(DataFile.of(other).path).name for other in files)
        raise InputError(f"data.mixture names {unknown[0]!r}, which is none of data.train_files: {known}")
    return next((weight for name, weight in mixture.items() if name in _names_of(file)), 1.0)


def _names_of(file: str | DataFile) -> list[str]:
    file = DataFile.of(file)
    name = Path(file.path).name
    of_folder = [file.folder, Path(file.folder).name] if file.folder else []
    return [file.path, name, name.split(".")[0], *of_folder]


def mix(samples: Iterable[Sample], weight: float, seed: int) -> list[Sample]:
    """Each sample ``weight`` times; (seed, id) decide on the fraction. Copies have ids of their own."""
    mixed = []
    for sample in samples:
        times = int(weight) + (Random(f"{seed}:{sample.id}").random() < weight % 1)
        mixed += [sample if copy == 0 else replace(sample, id=f"{sample.id}#{copy + 1}") for copy in range(times)]
    return mixed
