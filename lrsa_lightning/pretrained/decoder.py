"""Makes a transformers causal decoder from a hub id, a folder or configuration keys."""

import copy
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.lora.adapters import merged
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.pretrained import rope
from lrsa_lightning.pretrained.quantisation import Quantisation
from lrsa_lightning.pretrained.weights import read_pretrained
from lrsa_lightning.saved_settings import KEY, TEMPLATE, save_settings, saved_settings, set_aside

log = logging.getLogger(__name__)
# The modelling code reads it, but not every configuration class declares it.
_UNDECLARED = {"head_dim"}
# Older versions of transformers wrote these into config.json; it still reads them, into keys of other names.
_OLD_NAMES = {"torch_dtype", "use_mrope"}
_OLD_ROPE_NAMES = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_WAY_OUT = "give a hub id that this machine can reach, or a folder with config.json; code in it (auto_map) is not run"
_WAY_OUT_OF_WEIGHTS = "give a folder whose *.safetensors are complete and fit its config.json"


def load_config(
    name_or_path: str | None, from_config: dict[str, Any] | None, rope_parameters: dict[str, Any] | None = None
):
    """The model's configuration; loads no weights.

    Args:
        name_or_path: hub id or folder of a model or of an adapter, which names its base; or None.
        from_config: keys of Qwen2Config, or of the architecture that its `model_type` names, if name_or_path is None.
        rope_parameters: override those of the configuration.

    Raises:
        InputError: the model cannot be found, a key is unknown, or keys contradict each other.
    """
    if name_or_path is None:
        config = _config_from_keys(copy.deepcopy(from_config))  # transformers modifies the keys
    elif (adapter := AdapterFolder.of(name_or_path)) is None:
        config = _config_of_name(name_or_path, f"model.name_or_path {name_or_path!r}")
    else:
        config = _config_of_name(adapter.base, f"{adapter.base!r}, the base of the adapter {name_or_path},")
        changes = adapter.changes
        vars(config).update({key: value for key, value in changes.items() if key in (KEY, TEMPLATE)})
        rope_parameters = rope_parameters or changes.get("rope_parameters")
    if rope_parameters:
        rope.override(config, rope_parameters)
    return config


def _config_of_name(name_or_path: str, what: str):
    from transformers import AutoConfig

    if Path(name_or_path).is_file():
        raise InputError(f"{what} is a file: give the folder that contains it")
    before_loading(name_or_path)
    with reading(f"{what} cannot be loaded", _WAY_OUT):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if getattr(config, "auto_map", None):
        log.warning("%s: its own code (auto_map) is not run", what)
    rope.check_config_rope(config, what)
    return config


def _config_from_keys(keys: dict[str, Any]):
    from transformers import CONFIG_MAPPING

    model_type = keys.pop("model_type", "qwen2")
    if model_type not in CONFIG_MAPPING:
        hint = suggestion(str(model_type), CONFIG_MAPPING.keys())
        raise InputError(f"model.from_config: model_type {model_type!r} is not one of transformers'{hint}")
    config_class = CONFIG_MAPPING[model_type]
    default = config_class().to_dict()
    known = default.keys() | config_class.attribute_map.keys() | _UNDECLARED | _OLD_NAMES
    own_rope = default.get("rope_parameters")
    if own_rope is not None:
        known |= _OLD_ROPE_NAMES
    if unknown := sorted(keys.keys() - known):
        hint = suggestion(unknown[0], known)
        raise InputError(f"model.from_config: {', '.join(unknown)} not in {config_class.__name__}{hint}")
    if keys.get("use_mrope"):
        raise InputError("model.from_config: use_mrope is true, but transformers does not read it: leave it out")
    rope.check_given(keys, "model.from_config", set(own_rope or ()))
    try:
        config = config_class(**keys)
    except Exception as error:  # a configuration class can raise anything
        raise InputError(f"model.from_config: {' '.join(str(error).split())}") from error
    rope.check_config_rope(config, "model.from_config")
    _check_sizes(config.get_text_config(decoder=True))
    return config


def _check_sizes(config) -> None:
    """Checks the sizes of a decoder's layers; transformers would fail in a layer's forward, or not at all."""
    sizes = {name: getattr(config, name, None) for name in _SIZES}
    for name, size in sizes.items():
        if isinstance(size, int) and size < 1:
            raise InputError(f"model.from_config: {name} is {size}, but must be a whole number of at least 1")
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise InputError(
            f"model.from_config: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if isinstance(heads, int) and sizes["head_dim"] is None and (sizes["hidden_size"] or 0) % heads:
        raise InputError(
            f"model.from_config: hidden_size {sizes['hidden_size']} is not a multiple of num_attention_heads {heads}: "
            "change one of them, or give head_dim"
        )


def check_length(config, length: int, option: str = "data.seq_len") -> None:
    """Refuses texts of more tokens than the model has positions, its RoPE scaling included.

    Raises:
        InputError: the length is beyond the positions; names the option that gave it.
    """
    text = config.get_text_config(decoder=True)
    known = getattr(text, "max_position_embeddings", None)
    if known is None:
        return  # the model has no positions
    own = getattr(text, "rope_parameters", None) or {}
    of_kinds = [part for part in own.values() if isinstance(part, dict)] or [own]
    scaled = (part.get("factor", 1.0) * part.get("original_max_position_embeddings", known) for part in of_kinds)
    positions = max(known, *map(int, scaled))
    if length > positions:
        raise InputError(
            f"{option} {length} is beyond the model's {positions} positions: lower it, or scale RoPE with "
            f"model.rope_parameters {{rope_type: yarn, factor: {-(-length // positions)}.0}}"
        )


def load_model(
    config, name_or_path: str | None, dtype: torch.dtype | None = None, quantisation: Quantisation | None = None
):
    """The model, on the current default device, with transformers' default attention.

    Its weights are those of ``name_or_path``, or random if None. An adapter is merged into its base. Random weights are
    drawn on the CPU, so that every device and strategy starts with the same ones. Weights from files also pass through
    the CPU: to read them onto another device, transformers requires accelerate. On the meta device there are no
    weights: another rank has them.

    Args:
        config: the model's, of `load_config`.
        name_or_path: hub id or folder, or None.
        dtype: of the weights; torch's default dtype if None.
        quantisation: of the weights, on the device; they must be those of a folder or hub id.

    Raises:
        InputError: the weights cannot be read, or do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    dtype, device = dtype or torch.get_default_dtype(), torch.get_default_device()
    has_weights = device.type != "meta"
    with torch.device("cpu" if has_weights else device), set_aside(config):
        if name_or_path is None or not has_weights:
            if has_weights:
                log.info("drawing random weights on the CPU, which takes about 15 s for a billion of them")
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        else:
            with reading(f"model.name_or_path {name_or_path!r}: its weights cannot be loaded", _WAY_OUT_OF_WEIGHTS):
                model = _read(config, name_or_path, dtype, quantisation and quantisation.arguments(dtype, device))
            model.train()  # transformers returns it in evaluation mode, in which gradient checkpointing is off
    save_settings(model.config, saved_settings(config))
    if quantisation is None:  # otherwise the weights are there, and transformers refuses to move them
        model = model.to(device)
    for module in model.modules():
        if "inv_freq" in module._buffers:
            module.__class__ = type(type(module).__name__, (_Float32Buffers, type(module)), {})
    return model


def _read(config, name_or_path: str, dtype: torch.dtype, quantised: dict[str, Any] | None):
    from transformers import GenerationConfig

    if (adapter := AdapterFolder.of(name_or_path)) is None:
        return read_pretrained(config, name_or_path, dtype, quantised)
    model = merged(adapter.put_into(read_pretrained(config, adapter.base, dtype)), dtype)
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(name_or_path)
    return model


class _Float32Buffers:
    """A rotary embedding whose frequencies stay in float32 when the model is cast, as precision bf16-true does.

    In bf16 the frequencies are off by up to 0.4%. At position 1000 an angle of 100 becomes 100.1; at 32K every angle is
    wrong.
    """

    def _apply(self, function, recurse: bool = True):
        return super()._apply(lambda buffer: buffer.to(function(buffer).device), recurse)
