"""Makes a Hugging Face folder of a run's checkpoint."""

import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.attention.saved_mode import save_mode, serving
from lrsa_lightning.data.template import answer_ends
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import bars_in_terminals_only
from lrsa_lightning.model_folder.adapter_source import AdapterSource, export_source
from lrsa_lightning.model_folder.card import Card
from lrsa_lightning.model_folder.code import write_custom_generate
from lrsa_lightning.model_folder.engines import misreadings
from lrsa_lightning.model_folder.place import check_place, written_at_once
from lrsa_lightning.saved_settings import TEMPLATE
from lrsa_lightning.trained_model import RunCheckpoint, take_generation_config
from lrsa_lightning.version import __version__

log = logging.getLogger(__name__)
# safetensors copies a shard before it writes it.
_SHARD = "5GB"


def export(
    source: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    adapter: bool = False,
    overwrite: bool = False,
    serving_ratio: float | None = None,
) -> Path:
    """Writes safetensors, config.json, tokenizer, generation configuration, code and model card, atomically.

    config.json names the run's rule (`save_mode`). Generation ends where an answer of the training data ends, too. It
    holds the model once, and a shard.

    Args:
        source: a run directory, for its last checkpoint; a checkpoint: a file, or a folder of ZeRO's ranks; or an
            adapter folder, which is merged into its base.
        output: a folder that does not exist, or is empty.
        dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO and mixed precision.
        adapter: write the run's LoRA adapter as peft does, instead of a complete model with the adapter merged into it.
        overwrite: replace an earlier export in ``output``, if there is one; nothing else is deleted.
        serving_ratio: of an elastic run, the one of its ratios that config.json names; the run's own when None.

    Returns:
        The exported checkpoint.

    Raises:
        InputError: there is no complete checkpoint, the configuration of its run is missing, the run has no such ratio,
            or the output folder is not empty, not to be replaced, needed for the export, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    check_place(output, overwrite)
    trained = export_source(source)
    checkpoint, base = trained.path, trained.run["model"]["name_or_path"]
    if base is not None and output.resolve() in (Path(base).resolve(), checkpoint.resolve()):
        raise InputError(f"{output} is what the export is made of ({base}): give a new --output")
    tokenizer = load_tokenizer(trained.tokenizer_name, "the run's data.tokenizer")
    mode = _mode_of(trained) if serving_ratio is None else serving(_mode_of(trained), serving_ratio)
    model = trained.load_adapter(dtype) if adapter else trained.load(dtype)
    take_generation_config(model, base)
    warnings = misreadings(model.config.get_text_config(decoder=True))
    save_mode(model.config, mode)
    setattr(model.config, TEMPLATE, trained.template)
    for warning in warnings:
        log.warning("%s", warning)
    facts = {"lrsa_lightning": __version__, "run": trained.folder.name, "checkpoint": checkpoint.name}
    try:
        with written_at_once(output, facts) as folder, bars_in_terminals_only():
            tokenizer.save_pretrained(folder)
            _add_ends(model, answer_ends(trained.template, tokenizer))
            if adapter:
                model.save_pretrained(folder)
            else:
                model.save_pretrained(folder, max_shard_size=_SHARD)
                write_custom_generate(folder, mode)
            Card(trained, mode, tokenizer, adapter, warnings).write(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output} cannot be written: {error}") from error
    return checkpoint


def _mode_of(trained: RunCheckpoint | AdapterSource) -> AttentionMode | None:
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
