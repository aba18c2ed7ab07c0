"""From a checkpoint of a run to a Hugging Face folder."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from lrsa_lightning.checkpoint_files import find_last, make_empty, partial_of, remove, sync
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError
from lrsa_lightning.pretrained import load_checkpoint


def export(source: Path, output: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes safetensors, config.json, tokenizer and generation configuration, all of them or nothing.

    Args:
        source: run directory, whose last checkpoint is taken, or a checkpoint: a file, or a folder of ZeRO's ranks.
        output: folder that does not exist, or is empty.
        dtype: of the weights; as the checkpoint has them when None, float32 for ZeRO and mixed precision.

    Returns:
        The checkpoint taken.

    Raises:
        InputError: there is no whole checkpoint, no configuration of its run, something lies in the output folder, or
            it cannot be written.
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
    """Beside its place, to which the folder moves when all of it is on the disk."""
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
            f"{source} is neither a run (it has no config.yaml) nor a checkpoint: give runs/NAME or a checkpoint in it"
        )
    last = find_last(source / "checkpoints").path
    if last is None:
        raise InputError(f"{source} has no whole checkpoint in {source / 'checkpoints'}")
    return last


def _take_generation_config(model, name_or_path: str | None) -> None:
    """That of the model the run began with, where it has one."""
    from transformers import GenerationConfig

    if name_or_path is not None:
        try:
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
        except OSError:
            return
