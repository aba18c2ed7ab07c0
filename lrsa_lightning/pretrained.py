"""From a hub id, a folder or configuration keys to a transformers causal decoder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.checkpoint_files import is_universal, is_whole
from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.yaml_text import read_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
# Read by the modelling code, though not every configuration class declares it.
_UNDECLARED = {"head_dim"}
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
    else:
        config = _config_from_keys(dict(from_config))
    if rope_parameters:
        config.rope_parameters = {**config.rope_parameters, **rope_parameters}
    return config


def _config_from_keys(keys: dict[str, Any]):
    from transformers import CONFIG_MAPPING

    model_type = keys.pop("model_type", "qwen2")
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"model.from_config: model_type {model_type!r} is not one of transformers'")
    config_class = CONFIG_MAPPING[model_type]
    if unknown := sorted(keys.keys() - config_class().to_dict().keys() - _UNDECLARED):
        raise InputError(f"model.from_config: {', '.join(unknown)} not in {config_class.__name__}")
    try:
        return config_class(**keys)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.from_config: {error}") from error


def check_length(config, length: int, option: str = "data.seq_len") -> None:
    """Refuses texts longer than the positions the model knows, its RoPE scaling counted in.

    Args:
        config: the model's.
        length: tokens.
        option: what the user calls it, for the error.

    Raises:
        InputError: it is beyond them.
    """
    rope = config.rope_parameters or {}
    scaled = rope.get("factor", 1.0) * rope.get("original_max_position_embeddings", config.max_position_embeddings)
    positions = max(config.max_position_embeddings, int(scaled))
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
                    model = AutoModelForCausalLM.from_pretrained(
                        name_or_path, config=config, dtype=dtype, trust_remote_code=False
                    )
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
    """

    model: "PreTrainedModel"
    config: dict[str, Any]

    @property
    def tokenizer_name(self) -> str:
        """Hub id or folder of its tokenizer."""
        data = self.config["data"]
        if data["source"] == "demo":
            return str(Path(data["cache_dir"]) / "demo" / "tokenizer")
        return data["tokenizer"] or self.config["model"]["name_or_path"]


def load_checkpoint(checkpoint: Path, dtype: torch.dtype | None = None) -> TrainedModel:
    """The model of ``runs/<name>/checkpoints/<file or ZeRO folder>``, by the configuration in the run directory.

    Args:
        checkpoint: file, or folder that ZeRO's ranks wrote.
        dtype: of the weights; as they are in the checkpoint when None, which is float32 for ZeRO.

    Raises:
        InputError: there is no such checkpoint, it is torn, or no configuration lies beside it.
    """
    from transformers import AutoModelForCausalLM

    config_path = checkpoint.absolute().parent.parent / "config.yaml"
    for path in (checkpoint, config_path):
        if not path.exists():
            raise InputError(f"{path} does not exist: give a checkpoint of runs/<name>/checkpoints/")
    run = read_mapping(config_path, "the configuration of a run")
    keys = ("name_or_path", "from_config", "rope_parameters")
    config = load_config(*(run["model"][key] for key in keys))
    state = _weights(checkpoint)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype or next(iter(state.values())).dtype, trust_remote_code=False
    )
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    return TrainedModel(model.eval(), run)


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of the module, on the CPU."""
    if not is_whole(checkpoint) or is_universal(checkpoint):
        raise InputError(f"{checkpoint} is torn or no checkpoint of a run: give another")
    if checkpoint.is_dir():
        try:
            from lrsa_lightning.distributed.zero_files import read_weights
        except ModuleNotFoundError as error:
            raise InputError(f"{checkpoint} needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'") from error
        return read_weights(checkpoint)
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
