"""Makes a Hugging Face folder of a run's checkpoint."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from lrsa_lightning.checkpoint_files import make_empty, partial_of, remove
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.disk import sync
from lrsa_lightning.errors import InputError
from lrsa_lightning.last_checkpoint import find_last
from lrsa_lightning.trained_model import load_checkpoint


def export(source: Path, output: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes safetensors, config.json, tokenizer and generation configuration, atomically.

    Args:
        source: a run directory, for its last checkpoint, or a checkpoint: a file, or a folder of ZeRO's ranks.
        output: a folder that does not exist, or is empty.
        dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO and mixed precision.

    Returns:
        The exported checkpoint.

    Raises:
        InputError: there is no complete checkpoint, the configuration of its run is missing, or the output folder is
            not empty or cannot be written.
    """
    output = Path(os.path.abspath(output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists: give a new --output")
    checkpoint = _checkpoint(source)
    trained = load_checkpoint(checkpoint, dtype)
    _take_generation_config(trained.model, trained.config["model"]["name_or_path"])
    tokenizer = load_tokenizer(trained.tokenizer_name, "the run's data.tokenizer")
    try:
        _write(output, trained.model, tokenizer)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output} cannot be written: {error}") from error
    return checkpoint


def _write(output: Path, *parts) -> None:
    """Writes the folder beside its place, and moves it there once all of it is on the disk."""
    partial = partial_of(output)
    make_empty(partial)
    try:
        for part in parts:
            part.save_pretrained(partial)
        for file in (*partial.iterdir(), partial):
            sync(file)
        os.replace(partial, output)
        sync(output.parent)
    finally:
        remove(partial)


def _checkpoint(source: Path) -> Path:
    if not source.is_dir() or any((source / name).exists() for name in ("latest", "latest_universal")):
        return source
    if not (source / "config.yaml").exists():
        raise InputError(
            f"{source} is neither a run (it has no config.yaml) nor a checkpoint: give runs/NAME or a checkpoint of it"
        )
    last = find_last(source / "checkpoints").path
    if last is None:
        raise InputError(f"{source} has no complete checkpoint in {source / 'checkpoints'}")
    return last


def _take_generation_config(model, name_or_path: str | None) -> None:
    """Takes the generation configuration of the model that the run started from, if that has one."""
    from transformers import GenerationConfig

    if name_or_path is not None:
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
