"""Makes a Hugging Face folder of a run's checkpoint."""

import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from lrsa_lightning.adapter_folder import AdapterOnly
from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.saved_mode import save_mode
from lrsa_lightning.checkpoint_files import make_empty, partial_of, remove
from lrsa_lightning.data.template import TemplateName, answer_ends
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.disk import sync
from lrsa_lightning.errors import InputError
from lrsa_lightning.model_folder.code import write_custom_generate
from lrsa_lightning.trained_model import RunCheckpoint, find_checkpoint, take_generation_config

log = logging.getLogger(__name__)


def export(source: Path, output: Path, dtype: torch.dtype | None = None, adapter: bool = False) -> Path:
    """Writes safetensors, config.json, tokenizer and generation configuration, atomically.

    config.json names the run's rule (`save_mode`). Generation ends where an answer of the training data ends, too.

    Args:
        source: a run directory, for its last checkpoint, or a checkpoint: a file, or a folder of ZeRO's ranks.
        output: a folder that does not exist, or is empty.
        dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO and mixed precision.
        adapter: write the run's LoRA adapter as peft does, instead of a complete model with the adapter merged into it.

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
    trained = RunCheckpoint(checkpoint)
    tokenizer = load_tokenizer(trained.tokenizer_name, "the run's data.tokenizer")
    model = trained.load_adapter(dtype) if adapter else trained.load(dtype)
    take_generation_config(model, trained.run["model"]["name_or_path"])
    mode = _mode_of(trained)
    save_mode(model.config, mode)
    try:
        _write(output, model, tokenizer, mode, trained.run["data"].get("template", "base"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output} cannot be written: {error}") from error
    return checkpoint


def _mode_of(trained: RunCheckpoint) -> AttentionMode | None:
    try:
        return trained.attention
    except InputError as error:
        log.warning("%s; the folder names no attention mode", error)
        return None


def _add_ends(model, ends: list[int]) -> None:
    """Lets transformers' `generate` end an answer at these ids besides the model's own."""
    known = model.generation_config.eos_token_id
    known = [] if known is None else torch.tensor(known).flatten().tolist()
    if ends := [*dict.fromkeys([*known, *ends])]:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def _write(output: Path, model, tokenizer, mode: AttentionMode | None, template: TemplateName) -> None:
    """Writes the folder beside its place, and moves it there once all of it is on the disk."""
    partial = partial_of(output)
    make_empty(partial)
    try:
        tokenizer.save_pretrained(partial)
        _add_ends(model, answer_ends(template, tokenizer))
        model.save_pretrained(partial)
        if not isinstance(model, AdapterOnly):
            write_custom_generate(partial, mode)
        usual = (partial / "tokenizer_config.json").stat().st_mode
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(usual)  # safetensors writes files that their owner alone may read
            sync(path)
        sync(partial)
        os.replace(partial, output)
        sync(output.parent)
    finally:
        remove(partial)
