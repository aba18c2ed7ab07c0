"""Rows of a hub data set, through the library `datasets`."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lrsa_lightning.data.data_file import DataFile
from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading


def hub_rows(file: DataFile) -> Iterator[Any]:
    """The rows of a hub data set, in its order, up to `DataFile.rows`.

    Raises:
        InputError: the hub cannot be reached, or has no such data set, subset or split.
    """
    import datasets

    before_loading(file.path)
    where = {"name": file.subset, "split": file.split or "train", "revision": file.revision}
    try:
        loaded: Iterable[Any] = datasets.load_dataset(file.path, **where, streaming=file.streaming)
        if file.streaming:
            loaded = loaded.take(file.rows)
        # A stream reaches for the hub as it is read.
        yield from islice(loaded, file.rows)
    except InputError:
        raise
    except Exception as error:  # datasets raises whatever its network and file layers raise
        raise _refusal(file, error) from error


def _refusal(file: DataFile, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0][:200]}"
    if isinstance(error, ValueError) and ("split" in reason.lower() or "config" in reason.lower()):
        return InputError(
            f"hub data set {file.path} cannot be loaded ({reason}): set split and subset of the entry, as in "
            f"{{path: {file.path}, split: train, subset: null}}"
        )
    return InputError(
        f"hub data set {file.path} cannot be loaded ({reason}). Without access to the hub, run `hf download "
        f"--repo-type dataset {file.path} --local-dir DIR` where there is, and name DIR in data.train_files. If a file "
        "was meant: it does not exist."
    )
