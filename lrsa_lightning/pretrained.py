"""From a hub id, a folder or configuration keys to a transformers causal decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Read by the modelling code, though not every configuration class declares it.
_UNDECLARED = {"head_dim"}


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
        try:
            config = AutoConfig.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model.name_or_path {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]} "
                "Give a hub id that this machine can reach or a folder with config.json."
            ) from error
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

    Weights are those of ``name_or_path``, or random for None.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or torch.get_default_dtype()
    if name_or_path is not None:
        return AutoModelForCausalLM.from_pretrained(name_or_path, config=config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


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


def load_checkpoint(checkpoint: Path, dtype: torch.dtype) -> TrainedModel:
    """The model of ``runs/<name>/checkpoints/<file>``, by the configuration that lies in the run directory.

    Raises:
        InputError: there is no such file, or no configuration beside it.
    """
    import yaml
    from transformers import AutoModelForCausalLM

    config_path = checkpoint.parent.parent / "config.yaml"
    for path in (checkpoint, config_path):
        if not path.is_file():
            raise InputError(f"{path} does not exist: give a file of runs/<name>/checkpoints/")
    run = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    keys = ("name_or_path", "from_config", "rope_parameters")
    config = load_config(*(run["model"][key] for key in keys))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    return TrainedModel(model.eval(), run)
