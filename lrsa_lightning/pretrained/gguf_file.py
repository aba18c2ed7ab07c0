"""Makes a Hugging Face folder of a GGUF file, once: its weights in float32, as transformers dequantises them."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lrsa_lightning.errors import InputError, listed
from lrsa_lightning.files.disk import disk_full
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.pretrained.weights import read_complete

log = logging.getLogger(__name__)
CACHE = Path(".lrsa_cache") / "gguf"
_COMPLETE = "config.json"
_WAY_OUT = (
    "give a GGUF file of an architecture that transformers reads, such as llama or qwen2, or a Hugging Face folder"
)


def dequantised(name_or_path: str, gguf_file: str) -> str:
    """The Hugging Face folder with the weights and the configuration of a GGUF file.

    It is made at the first use, below `.lrsa_cache/gguf`, by one process while others wait; atomically, so a killed
    process leaves no half of it. Its name holds a hash of the file's place, size and time, so a changed file is read
    anew. The folder has no tokenizer: transformers' tokenizer of a GGUF file does not survive being saved.

    Args:
        name_or_path: folder or hub id that holds the file.
        gguf_file: its name there.

    Raises:
        InputError: a package or the file is missing, transformers cannot read it, or the disk is full.
    """
    file = find_file(name_or_path, gguf_file)
    folder = CACHE.absolute() / f"{file.stem}-{_key(file)}"
    with _alone(folder):
        if not (folder / _COMPLETE).is_file():
            log.info("dequantising %s into %s", file, folder)
            _make(file, folder)
    return str(folder)


def find_file(name_or_path: str, gguf_file: str) -> Path:
    """The GGUF file on this machine; one of the hub is downloaded. Reads nothing of it.

    Raises:
        InputError: the package gguf or accelerate is missing, or there is no such file.
    """
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise InputError(f"model.gguf_file needs the package {package}: pip install 'lrsa-lightning[gguf]'")
    folder = Path(name_or_path)
    if folder.exists():
        if not (folder / gguf_file).is_file():
            raise InputError(_no_file(folder, gguf_file))
        return folder / gguf_file
    from transformers.utils import cached_file

    before_loading(name_or_path)
    with reading(f"model.gguf_file {gguf_file!r} of {name_or_path!r} cannot be loaded", _WAY_OUT):
        return Path(cached_file(name_or_path, gguf_file))


def _no_file(folder: Path, gguf_file: str) -> str:
    if folder.is_file():
        return (
            f"model.name_or_path {folder} is a file: give the folder that contains it, and its name as model.gguf_file"
        )
    there = sorted(path.name for path in folder.glob("*.gguf"))
    found = f"it has {listed(there)}" if there else "it has no *.gguf"
    return f"model.gguf_file {gguf_file!r} is not in model.name_or_path {folder}: {found}"


def _key(file: Path) -> str:
    status = file.stat()
    known = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(known.encode()).hexdigest()[:20]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            yield
    except (OSError, RuntimeError) as error:  # safetensors has an error of its own for a full disk
        if (fault := disk_full(error)) is None:
            raise
        raise InputError(f"{folder} cannot be written ({fault.strerror}): free the disk, or start elsewhere") from error


def _make(file: Path, folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed: it does not hold the lock
        shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _read(file).save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(file: Path):
    from transformers import AutoConfig

    where = {"gguf_file": file.name}
    with torch.device("cpu"), reading(f"model.gguf_file {file} cannot be read", _WAY_OUT):
        config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False, **where)
        arguments = where | _dense()
        model = read_complete(config, str(file.parent), f"model.gguf_file {file}", torch.float32, **arguments)
    model.config._name_or_path = file.stem
    return model


def _dense() -> dict[str, Any]:
    """Arguments that make weights dense: newer versions of transformers keep them in blocks where they can."""
    import transformers

    config_class = getattr(transformers, "GgufConfig", None)
    return {} if config_class is None else {"quantization_config": config_class(dequantize=True)}
