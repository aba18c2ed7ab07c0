"""The identity of an evaluation's model, whatever the names and dates of its files."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# The model's origin; no result depends on it.
_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def fingerprint(model) -> str:
    """A hash of a model's weights, of its configuration and of the tokens that end its answers.

    Args:
        model: a transformers decoder, on the CPU.
    """
    weights = model.state_dict()
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        hashes = dict(zip(weights, pool.map(_sha256, weights.values()), strict=True))
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _ORIGIN}
    ends = None if model.generation_config is None else model.generation_config.eos_token_id
    known = json.dumps([hashes, config, ends], sort_keys=True, default=str)
    return hashlib.sha256(known.encode("utf-8")).hexdigest()


def _sha256(weight: Tensor) -> str:
    flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()
