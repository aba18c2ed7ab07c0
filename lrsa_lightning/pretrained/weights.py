"""Reads all of a model's pretrained weights as they were saved, or names what does not fit."""

import json
import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lrsa_lightning.errors import InputError, listed
from lrsa_lightning.hub import bars_in_terminals_only

_FLOATS = {"F64", "F32", "F16", "BF16"}
# Elements looked at together: torch makes a copy of them on the way.
_PIECE = 2**22


def check_folder(name_or_path: str) -> None:
    """Checks the files of a folder without loading the weights; does nothing for a hub id.

    Raises:
        InputError: weights are missing, truncated or not floating-point numbers of at least 16 bits.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return
    if (folder / "config.json").exists():  # without it, load_config gives the better error
        for file in _weight_files(folder):
            _check_file(file)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or index.exists():
        names = {single.name} if single.exists() else _names_in(index)
        files = [folder / name for name in sorted(names)]
    else:
        files = [*folder.glob("pytorch_model*.bin")] or [single]
    if missing := [file.name for file in files if not file.exists()]:
        raise InputError(
            f"model.name_or_path {folder} lacks the weights of {listed(sorted(missing))}: copy the folder again"
        )
    return files


def _names_in(index: Path) -> set[str]:
    try:
        return {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is not an index of weights ({error!r}): copy the folder again") from error


def _check_file(file: Path) -> None:
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, "pt") as weights:
            dtypes = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}): copy the file again") from error
    if others := {name: dtype for name, dtype in dtypes.items() if dtype not in _FLOATS}:
        name, dtype = next(iter(others.items()))
        raise InputError(f"{file}: {name} has dtype {dtype}: give weights in float32, bfloat16 or float16")


def check_quantisation(config, name_or_path: str) -> None:
    """Raises an InputError if the weights of this configuration are quantised."""
    if (given := getattr(config, "quantization_config", None)) is not None:
        method = given.get("quant_method") if isinstance(given, dict) else type(given).__name__
        raise InputError(
            f"model.name_or_path {name_or_path} is quantised ({method}): give the weights before quantisation"
        )


def read_pretrained(config, name_or_path: str, dtype: torch.dtype, quantised: dict[str, Any] | None = None):
    """A causal decoder with the weights of a folder or hub id, in evaluation mode; on the CPU, but for quantised ones.

    Raises:
        InputError: the weights cannot be read, or are not exactly those of the model.
    """
    check_folder(name_or_path)
    check_quantisation(config, name_or_path)
    return read_complete(config, name_or_path, f"model.name_or_path {name_or_path}", dtype, **(quantised or {}))


def read_complete(config, name_or_path: str, whose: str, dtype: torch.dtype, **arguments):
    """A causal decoder with all of its weights from transformers' `from_pretrained`, in evaluation mode.

    transformers alone would fill missing weights with random numbers, and only warn.

    Args:
        config: the model's.
        name_or_path: folder or hub id.
        whose: what the weights are of, for errors: the user's key and its value.
        dtype: of the weights.
        arguments: further ones of `from_pretrained`.

    Raises:
        InputError: the weights cannot be read, or are not exactly those of the model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _without_warnings(), bars_in_terminals_only():
            model, info = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
                ignore_mismatched_sizes=True,  # _check_complete names them with everything else that does not fit
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"the weights of {whose} cannot be read: {said}") from error
    _check_complete(info, whose)
    _tie(model, whose)
    check_finite(model, whose, "take another trainer.precision or model")
    return model


def check_finite(model, whose: str, way_out: str) -> None:
    """Raises an InputError if a weight is NaN or infinite in the model's dtype, as one beyond 65504 in float16 is."""
    for name, parameter in model.named_parameters():
        if not all(torch.isfinite(piece).all() for piece in parameter.detach().flatten().split(_PIECE)):
            raise InputError(f"{whose}: {name} is NaN or infinite in {str(parameter.dtype)[6:]}; {way_out}")


def _check_complete(info: dict[str, Collection], whose: str) -> None:
    faults = []
    if missing := info["missing_keys"]:
        faults.append(f"lack {listed(sorted(missing))}")
    if unexpected := info["unexpected_keys"]:
        faults.append(f"have {listed(sorted(unexpected))}, which the model does not have")
    for name, saved, wanted in info["mismatched_keys"]:
        faults.append(f"have {name} in shape {[*saved]}, not {[*wanted]}")
    if faults:
        raise InputError(
            f"the weights of {whose} are not those of its configuration: they "
            f"{', '.join(faults[:3])}. Give the folder of a complete causal language model"
        )


def _tie(model, whose: str) -> None:
    """Ties the head to the embedding if the configuration says so: transformers does not if the files hold a head."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or head.weight is embedding.weight:
        return
    if not torch.equal(head.weight, embedding.weight):
        raise InputError(
            f"{whose}: config.json ties the head to the embedding, but their weights differ: "
            "set tie_word_embeddings to false in config.json"
        )
    head.weight = embedding.weight


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences transformers' long reports, which the error states in one line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
