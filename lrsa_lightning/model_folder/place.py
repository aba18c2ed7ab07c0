"""Where an export goes: a new folder, or in place of an earlier export, at once or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrsa_lightning.checkpoints.atomic_files import make_empty, partial_of, remove
from lrsa_lightning.errors import InputError, listed
from lrsa_lightning.files.disk import sync

# Says that a folder is an export, of what, and which files are part of it.
MANIFEST = "export.json"


def check_place(output: Path, overwrite: bool) -> None:
    """Refuses a place with files, unless they are those of an earlier export and may be replaced.

    Raises:
        InputError: the place is not free; names what to do.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{output} exists: give a new --output, or --overwrite if it is an earlier export")
    if output.is_symlink() or not output.is_dir() or (known := _files_of_export(output)) is None:
        raise InputError(f"{output} is no export of ours, so --overwrite does not delete it: give a new --output")
    if foreign := sorted(_files_in(output) - known):
        raise InputError(
            f"{output} holds {listed(foreign)} beside the files of an export, so --overwrite does not delete it: move "
            "them away, or give a new --output"
        )


@contextmanager
def written_at_once(output: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a folder beside the place to fill, and moves it there once all of it is on the disk.

    Args:
        output: the place. An earlier export there is deleted after that.
        facts: of the export, for its manifest.
    """
    partial, earlier = partial_of(output), output.with_name(f".{output.name}.earlier")
    make_empty(partial)
    try:
        yield partial
        manifest = {**facts, "files": sorted(_files_in(partial))}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _settle(partial)
        if output.is_dir() and any(output.iterdir()):
            remove(earlier)
            os.replace(output, earlier)
        os.replace(partial, output)
        sync(output.parent)
        remove(earlier)
    finally:
        remove(partial)


def _settle(folder: Path) -> None:
    """Gives all files the usual mode: safetensors writes files that their owner alone may read. Waits for the disk."""
    usual = (folder / MANIFEST).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)
        sync(path)
    sync(folder)


def _files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _files_of_export(folder: Path) -> set[str] | None:
    """The files that an export wrote, the manifest among them; None if the folder is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
