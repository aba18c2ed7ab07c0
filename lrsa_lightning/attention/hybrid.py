"""Hybrid models: LRSA runs in the full-attention layers. Each other layer keeps its own attention, mask and cache.

transformers names the kind of each layer in ``layer_types`` of a model's configuration: a sliding window, chunks,
linear attention, a convolution.
"""

import sys
from typing import Any

from packaging import version
from torch import Tensor

from lrsa_lightning.attention.layer_call import asked
from lrsa_lightning.attention.packing import boundaries_from_starts, boundaries_of
from lrsa_lightning.attention.rows import RowMask, TracedRows, says_rows_are_known
from lrsa_lightning.errors import InputError

FULL = ("full_attention", "attention")
# Layers that attend. What the others remember is one state for the row.
_ATTEND = (*FULL, "sliding_attention", "chunked_attention")
# Models whose other layers were seen to compute the same from their caches as without: not all of transformers' do.
_CONTINUE = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "lfm2", "lfm3")
# What transformers' sdpa function honours. The rest is for the eager function of the model's own file.
_SDPA_HONOURS = {"dropout", "is_causal", "sliding_window"}


def kept_layers(config) -> frozenset[int]:
    """The layers of a hybrid model in which nothing is swapped; empty for a model whose layers are of one kind.

    Args:
        config: of the text decoder.
    """
    kinds = _kinds(config)
    kept = {layer for layer, kind in enumerate(kinds) if kind not in FULL}
    return frozenset(kept) if len(kept) < len(kinds) else frozenset()


def kinds_of_layers(config) -> list[str]:
    """The kind of each layer: by ``layer_types``, else one for all, as transformers' caches read a configuration."""
    if kinds := _kinds(config):
        return kinds
    windows = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    kind = next((kind for kind, size in windows.items() if getattr(config, size, None)), "full_attention")
    return [kind] * config.num_hidden_layers


def _kinds(config) -> list[str]:
    return [*(getattr(config, "layer_types", None) or ())][: config.num_hidden_layers]


def kind_that_may_forget(config) -> str | None:
    """A kind of layers that may not continue from their cache in a later forward of several tokens, or None."""
    if not kept_layers(config) or config.model_type in _CONTINUE:
        return None
    return next((kind for kind in _kinds(config) if kind not in _ATTEND), None)


def own_cache_layers(config) -> dict[int, Any]:
    """The cache layers that transformers makes for the kept layers, by layer."""
    from transformers import DynamicCache

    if not (kept := kept_layers(config)):
        return {}
    layers = DynamicCache(config=config).layers
    return {layer: layers[layer] for layer in kept}


def counts_columns(config) -> bool:
    """Whether a cache of the model counts columns, padding too: windows and states. Rows are then padded on the left.

    Args:
        config: of the text decoder.
    """
    return bool(kept_layers(config) or _windows(config))


def _windows(config) -> list[int]:
    from transformers import DynamicCache

    return [z.sliding_window for z in DynamicCache(config=config).layers if getattr(z, "is_sliding", False)]


def check_full_attention(config, num_tokens: int) -> None:
    """Raises InputError unless each layer is full attention over so many tokens: ranks share no other."""
    if kept_layers(config) or any(window < num_tokens for window in _windows(config)):
        raise InputError(
            f"sequence parallelism shares full attention alone, and not all layers of {config.model_type!r} are full "
            f"attention over {num_tokens} tokens: set sequence_parallel.size to 1"
        )


def attend_as_before(module, query, key, value, attention_mask, scaling: float | None, **arguments) -> tuple:
    """The attention of a kept layer, as transformers computes it: by SDPA, or by the eager function of its model.

    Arguments and result as of transformers' attention functions.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if set(asked(arguments)) <= _SDPA_HONOURS:
        name, function = "sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"]
    else:
        name, function = "eager", eager_function(module)
    if isinstance(attention_mask, RowMask | TracedRows):
        attention_mask = attention_mask.made_by(name)
    return function(module, query, key, value, attention_mask, scaling=scaling, **arguments)


def eager_function(module):
    """What the file of a model defines as its reference.

    Raises:
        InputError: it defines none.
    """
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise InputError(
            f"layer {module.layer_idx} of this model ({type(module).__name__}) keeps its own attention beside LRSA, "
            "but its file defines no eager_attention_forward. Use Vanilla with this model"
        )
    return function


def for_kept_layers(config, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a forward of a hybrid decoder needs besides; none for another decoder.

    Args:
        config: of the text decoder.
        given: the arguments of its forward.

    Raises:
        InputError: kept layers cannot compute these rows as the others do.
    """
    if not (kept := kept_layers(config)):
        return {}
    mask = given.get("attention_mask")
    if given.get("cu_seqlens") is not None:
        _check_restarts(config, given)
    if given.get("past_key_values") is not None and isinstance(mask, Tensor) and mask.ndim == 2:
        _check_padding(mask)
    # Layers that keep their attention need the mask that transformers makes.
    return {"kept_layers": kept} | ({"attention_mask": None} if says_rows_are_known(mask) else {})


def check_packed_rows(config) -> None:
    """Raises InputError if a kept layer would carry its state from one sample of a packed row into the next one."""
    from transformers import masking_utils

    if stateful := [kind for kind in _kinds(config) if kind not in _ATTEND]:
        raise InputError(
            f"{config.model_type!r} has layers of {stateful[0]}, whose state runs through all samples of a packed row: "
            "put one sample into each row (data.packing: false)"
        )
    if "chunked_attention" in _kinds(config) and not hasattr(masking_utils, "remap_positions_for_packed_sequence"):
        raise InputError(
            "in this version of transformers chunks begin within the samples of a packed row: put one sample into each "
            "row (data.packing: false), or update transformers"
        )


def check_padded_states(config) -> None:
    """Raises InputError if padding in a later piece of a prompt would reach the state of a layer, as before 5.20."""
    import transformers

    if {*_kinds(config)} - {*_ATTEND} and version.parse(transformers.__version__) < version.parse("5.20"):
        raise InputError(
            f"transformers {transformers.__version__} lets padding into the states of {config.model_type!r}: generate "
            "from rows of equal length, or one by one, or take transformers 5.20"
        )


def _check_restarts(config, given: dict[str, Any]) -> None:
    """The masks of kept layers come from the positions, those of LRSA from the boundaries."""
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    rows = boundaries_of(given["cu_seqlens"], *tokens.shape[:2])
    if all(len(row) == 2 for row in rows):
        return
    check_packed_rows(config)
    positions = given.get("position_ids")
    if positions is None or boundaries_from_starts(positions.diff(dim=1) != 1) != rows:
        raise InputError(
            "cu_seqlens and position_ids disagree: in a hybrid model positions must begin at 0 with each sample of a "
            "packed row"
        )


def _check_padding(mask_BN: Tensor) -> None:
    if bool(((mask_BN[:, :-1] != 0) & (mask_BN[:, 1:] == 0)).any()):
        raise InputError(
            "a hybrid model's own caches count columns: pad rows of unequal length on the left, not on the right"
        )
