"""From a hub id, a folder or configuration keys to a transformers causal decoder."""

import copy
import logging
import pickle
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning import rope
from lrsa_lightning.checkpoint_files import fault_of, is_universal
from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.pretrained_weights import check_finite, read_pretrained
from lrsa_lightning.resume_guard import newest_config
from lrsa_lightning.saved_config import MADE_TOKENIZER
from lrsa_lightning.yaml_text import read_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
# Read by the modelling code, though not every configuration class declares it.
_UNDECLARED = {"head_dim"}
# In config.json files that older versions of transformers wrote; it reads them still, into keys of other names.
_OLD_NAMES = {"torch_dtype", "use_mrope"}
_OLD_ROPE_NAMES = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_WAY_OUT = "give a hub id that this machine can reach, or a folder with config.json; code in it (auto_map) is not run"
_WAY_OUT_OF_WEIGHTS = "give a folder whose *.safetensors are whole and fit its config.json"


def load_config(
    name_or_path: str | None, from_config: dict[str, Any] | None, rope_parameters: dict[str, Any] | None = None
):
    """The model's configuration; loads no weights.

    Args:
        name_or_path: hub id or folder, or None.
        from_config: keys of Qwen2Config, or of the architecture its `model_type` names, when there is no name.
        rope_parameters: overrides of the configuration's own.

    Raises:
        InputError: the model cannot be found, a key is unknown, or the keys contradict each other.
    """
    from transformers import AutoConfig

    if name_or_path is not None:
        if Path(name_or_path).is_file():
            raise InputError(f"model.name_or_path {name_or_path!r} is a file: give the folder that it lies in")
        before_loading(name_or_path)
        with reading(f"model.name_or_path {name_or_path!r} cannot be loaded", _WAY_OUT):
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        if getattr(config, "auto_map", None):
            log.warning("model.name_or_path %s: its own code (auto_map) is not run", name_or_path)
        rope.check_config_rope(config, f"model.name_or_path {name_or_path!r}")
    else:
        config = _config_from_keys(copy.deepcopy(from_config))  # transformers writes into it
    if rope_parameters:
        rope.override(config, rope_parameters)
    return config


def _config_from_keys(keys: dict[str, Any]):
    from transformers import CONFIG_MAPPING

    model_type = keys.pop("model_type", "qwen2")
    if model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), CONFIG_MAPPING.keys(), n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InputError(f"model.from_config: model_type {model_type!r} is not one of transformers'{hint}")
    config_class = CONFIG_MAPPING[model_type]
    default = config_class().to_dict()
    known = default.keys() | _UNDECLARED | _OLD_NAMES
    own_rope = default.get("rope_parameters")
    if own_rope is not None:
        known |= _OLD_ROPE_NAMES
    if unknown := sorted(keys.keys() - known):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InputError(f"model.from_config: {', '.join(unknown)} not in {config_class.__name__}{hint}")
    if keys.get("use_mrope"):
        raise InputError("model.from_config: use_mrope is true, but transformers does not read it: leave it out")
    rope.check_given(keys, "model.from_config", set(own_rope or ()))
    try:
        config = config_class(**keys)
    except Exception as error:  # whatever a configuration class raises
        raise InputError(f"model.from_config: {_one_line(error)}") from error
    rope.check_config_rope(config, "model.from_config")
    _check_sizes(config.get_text_config(decoder=True))
    return config


def _check_sizes(config) -> None:
    """Of a decoder's layers; transformers finds out in a layer's forward, or not at all."""
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_length(config, length: int, option: str = "data.seq_len") -> None:
    """Refuses texts longer than the positions the model knows, its RoPE scaling counted in.

    Args:
        config: the model's.
        length: tokens.
        option: what the user calls it, for the error.

    Raises:
        InputError: it is beyond them.
    """
    text = config.get_text_config(decoder=True)
    known = getattr(text, "max_position_embeddings", None)
    if known is None:
        return  # of a model without positions
    own = getattr(text, "rope_parameters", None) or {}
    of_kinds = [part for part in own.values() if isinstance(part, dict)] or [own]
    scaled = (part.get("factor", 1.0) * part.get("original_max_position_embeddings", known) for part in of_kinds)
    positions = max(known, *map(int, scaled))
    if length > positions:
        raise InputError(
            f"{option} {length} is beyond the model's {positions} positions: lower it, or scale RoPE with "
            f"model.rope_parameters {{rope_type: yarn, factor: {-(-length // positions)}.0}}"
        )


def load_model(config, name_or_path: str | None, dtype: torch.dtype | None = None):
    """The model in the given or the current default dtype, on the current default device.

    Weights are those of ``name_or_path``, or random for None: drawn on the CPU, so that every device and strategy
    begins with the same. Weights that are read pass through the CPU too: to read them onto another device,
    transformers demands accelerate. On the meta device there are none: another rank has them.
    """
    from transformers import AutoModelForCausalLM

    dtype, device = dtype or torch.get_default_dtype(), torch.get_default_device()
    if device.type == "meta":
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    else:
        with torch.device("cpu"):
            if name_or_path is None:
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
            else:
                with reading(f"model.name_or_path {name_or_path!r}: its weights cannot be loaded", _WAY_OUT_OF_WEIGHTS):
                    model = read_pretrained(config, name_or_path, dtype)
                model.train()  # transformers gives it in evaluation mode, where gradient checkpointing does nothing
        model = model.to(device)
    for module in model.modules():
        if "inv_freq" in module._buffers:
            module.__class__ = type(type(module).__name__, (_Float32Buffers, type(module)), {})
    return model


class _Float32Buffers:
    """A rotary embedding whose frequencies stay in float32 when the model is cast, as precision bf16-true does.

    In bf16 they are off by up to 0.4%: at position 1000 an angle of 100 is 100.1, at 32K nothing of it is right.
    """

    def _apply(self, function, recurse: bool = True):
        return super()._apply(lambda buffer: buffer.to(function(buffer).device), recurse)


@dataclass(frozen=True)
class TrainedModel:
    """A model taken from a run.

    Attributes:
        model: in evaluation mode.
        config: the run's resolved configuration.
        folder: the run directory.
    """

    model: "PreTrainedModel"
    config: dict[str, Any]
    folder: Path

    @property
    def tokenizer_name(self) -> str:
        """Hub id or folder of its tokenizer."""
        data = self.config["data"]
        if data["source"] == "demo":
            beside = self.folder / MADE_TOKENIZER
            return str(beside if beside.is_dir() else Path(data["cache_dir"]) / "demo" / "tokenizer")
        return data["tokenizer"] or self.config["model"]["name_or_path"]


def load_checkpoint(checkpoint: Path, dtype: torch.dtype | None = None) -> TrainedModel:
    """The model of ``runs/<name>/checkpoints/<file or ZeRO folder>``, by the run's newest configuration.

    Args:
        checkpoint: file, or folder that ZeRO's ranks wrote.
        dtype: of the weights; as they are in the checkpoint when None, which is float32 for ZeRO.

    Raises:
        InputError: there is no such checkpoint, it is corrupt or not of a run, no configuration lies beside it or
            one of another model, or a weight is not finite in the dtype.
    """
    from transformers import AutoModelForCausalLM

    run = _configuration(checkpoint)
    keys = ("name_or_path", "from_config", "rope_parameters")
    config = load_config(*(run["model"][key] for key in keys))
    state = _weights(checkpoint)
    dtype = dtype or next(iter(state.values())).dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    try:
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{checkpoint} has not the weights of its run's model: {said}") from error
    check_finite(model, str(checkpoint), "take another checkpoint or --dtype")
    return TrainedModel(model.eval(), run, checkpoint.absolute().parent.parent)


def _configuration(checkpoint: Path) -> dict[str, Any]:
    """The newest of the run: a resume with --allow_mismatch may have changed the model's RoPE since the first."""
    directory = checkpoint.absolute().parent.parent
    path = newest_config(directory)
    if path is None or not checkpoint.exists():
        missing = checkpoint if not checkpoint.exists() else directory / "config.yaml"
        raise InputError(f"{missing} does not exist: give a checkpoint of runs/<name>/checkpoints/")
    run = read_mapping(path, "the configuration of a run")
    try:
        run["model"]["name_or_path"], run["data"]["source"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run ({error!r})") from error
    return run


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of the module, on the CPU."""
    if fault := "is a universal folder" if is_universal(checkpoint) else fault_of(checkpoint):
        raise InputError(f"{checkpoint} {fault}: give another")
    if checkpoint.is_dir():
        try:
            from lrsa_lightning.distributed.zero_files import read_weights
        except ModuleNotFoundError as error:
            raise InputError(f"{checkpoint} needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'") from error
        return read_weights(checkpoint)
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (pickle.UnpicklingError, KeyError) as error:
        raise InputError(
            f"{checkpoint} is no checkpoint of a run: it has no weights, or more than plain data"
        ) from error
