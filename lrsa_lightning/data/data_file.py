"""What an entry of `data.train_files` names: a file, a folder or a hub data set, and how it is read."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lrsa_lightning.data.prepared_folder import hash_of
from lrsa_lightning.data.template import TemplateChoice
from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.ranges import PositiveInt, checked

FormatName: TypeAlias = Literal["auto", "longalign", "sharegpt", "longalpaca", "anti_haystack", "refgpt", "text"]
Entry: TypeAlias = str | os.PathLike | Mapping[str, Any]
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
_OF_THE_HUB = ("subset", "revision", "streaming")


@checked
@dataclass(frozen=True)
class DataFile:
    """A file, a folder or a hub data set.

    Attributes:
        path: of the file or folder, or the hub id.
        source: format of the rows; `data.source` when None.
        fields: the user's names of the columns; `data.fields` when None.
        template: `data.template` when None.
        rows: the first rows to read; all when None.
        split: of a folder or hub data set; train when None.
        subset: of a hub data set that has several.
        revision: branch, tag or commit of a hub data set.
        streaming: reads the rows of a hub data set without storing all its files.
        folder: the folder that the user named, of a file in it.
    """

    path: str
    source: FormatName | None = None
    fields: Mapping[str, str] | None = None
    template: TemplateChoice | None = None
    rows: PositiveInt | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False
    folder: str | None = None

    @classmethod
    def of(cls, entry: "Entry | DataFile", option: str = "the entry") -> "DataFile":
        """The data file of an entry.

        Args:
            entry: a path or hub id, or a mapping of the attributes.
            option: the user's name of it, for errors.

        Raises:
            InputError: a key is unknown, or a value out of its range.
        """
        if isinstance(entry, DataFile):
            return entry
        if isinstance(entry, str | os.PathLike):
            return cls(os.fspath(entry))
        known = [field.name for field in fields(cls) if field.name != "folder"]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
            raise InputError(
                f"{option} is {entry!r}, but must be a name, or a mapping with path, and with {', '.join(known[1:])}"
            )
        if unknown := [key for key in entry if key not in known]:
            way_out = suggestion(str(unknown[0]), known) or f": there are {', '.join(known)}"
            raise InputError(f"{option} has the key {unknown[0]!r}{way_out}")
        try:
            file = cls(**entry)
        except InputError as error:
            raise InputError(f"{option}: {str(error).removeprefix('DataFile.')}") from None
        file._check(option)
        return file

    def _check(self, option: str) -> None:
        if not self.streaming:
            return
        if "[" in (self.split or ""):
            raise InputError(f"{option}: a part of a split ({self.split}) cannot be streamed: set rows instead")
        if self.rows is None:
            raise InputError(
                f"{option}: streaming needs rows, the number of rows to read. A run shuffles and resumes among rows "
                "that it knows, so an open end cannot be trained on"
            )

    @property
    def is_local(self) -> bool:
        """Whether the path is of a file or folder on this machine."""
        return bool(self.path) and Path(self.path).exists()

    @property
    def identity(self) -> Any:
        """What is the same for two entries of the same rows."""
        return Path(self.path).resolve() if self.is_local else (self.path, self.subset, self.split or "train")

    @property
    def content(self) -> str:
        """A hash of the file's bytes. Of a hub data set, its name and the part that is read."""
        if self.is_local:
            return hash_of(Path(self.path))
        part = [self.subset, self.split, self.revision]
        return json.dumps([self.path, *part]) if any(part) else self.path

    @property
    def options(self) -> dict[str, Any]:
        """How the rows are read, as far as it is not the default."""
        how = ("source", "fields", "template", "rows")
        return {key: value for key, value in asdict(self).items() if key in how and value is not None}

    def files(self) -> list["DataFile"]:
        """The files of a folder, in the order of their names; else this one.

        Raises:
            InputError: a folder has no file of the split, or an option fits hub data sets alone.
        """
        path = Path(self.path)
        if not self.is_local:
            return [self]
        given = [name for name in (*_OF_THE_HUB, *(() if path.is_dir() else ("split",))) if getattr(self, name)]
        if given:
            kind = "folder" if path.is_dir() else "file"
            raise InputError(f"{self.path} is a {kind} of this machine, without {given[0]}: leave {given[0]} out")
        if not path.is_dir():
            return [self]
        found = _files_in(path, self.split or "train")
        return [replace(self, path=str(file), split=None, folder=self.path) for file in found]


def data_files(option: str, entries: Entry | Sequence[Entry] | None) -> list[DataFile]:
    """The data files of an option.

    Raises:
        InputError: an entry is no name and no mapping with a path.
    """
    if entries is None or isinstance(entries, str | os.PathLike | Mapping):
        return [] if entries is None else [DataFile.of(entries, option)]
    if not isinstance(entries, Sequence):
        raise InputError(f"{option} is {entries!r}, but must be names of files, folders or hub ids")
    return [DataFile.of(entry, f"{option}[{place}]") for place, entry in enumerate(entries)]


def _files_in(folder: Path, split: str) -> list[Path]:
    """The data files of a folder that belong to a split, as the library `datasets` reads their names."""
    if (folder / "dataset_dict.json").is_file():  # of DatasetDict.save_to_disk
        return _files_in(
            _split_of(split, {path.name: path for path in folder.iterdir() if path.is_dir()}, folder), "train"
        )
    if (folder / "state.json").is_file():  # of Dataset.save_to_disk
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    from datasets.data_files import DataFilesList, EmptyDatasetError, get_data_patterns

    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        patterns = {}
    found = {name: DataFilesList.from_patterns(of_split, str(folder)) for name, of_split in patterns.items()}
    files = {name: [path for path in map(Path, paths) if is_data(path)] for name, paths in found.items()}
    if not any(files.values()):
        raise InputError(f"folder {folder} has no data files: expected {', '.join(SUFFIXES)}, also with .gz")
    return sorted(_split_of(split, files, folder))


def _split_of(split: str, found: Mapping[str, Any], folder: Path) -> Any:
    if not found.get(split):
        known = ", ".join(str(name) for name, files in found.items() if files)
        raise InputError(
            f"folder {folder} has no split {split}, but {known}: set split, as in {{path: ..., split: ...}}"
        )
    return found[split]


def is_data(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return kind_of(path) in SUFFIXES


def kind_of(path: Path) -> str:
    """The ending of a file's name, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix
