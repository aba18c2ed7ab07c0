"""Makes a Hugging Face folder of a run's checkpoint."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from lrsa_lightning.checkpoint_files import make_empty, partial_of, remove
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.disk import sync
from lrsa_lightning.errors import InputError
from lrsa_lightning.trained_model import find_checkpoint, load_checkpoint, take_generation_config


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
    checkpoint = find_checkpoint(source)
    trained = load_checkpoint(checkpoint, dtype)
    take_generation_config(trained.model, trained.config["model"]["name_or_path"])
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
