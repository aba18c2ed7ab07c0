"""What a run's checkpoint holds: the trained model with its configuration, and the state beside the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.checkpoint_files import TAG, is_universal
from lrsa_lightning.errors import InputError
from lrsa_lightning.last_checkpoint import fault_of, read_index
from lrsa_lightning.pretrained import load_config
from lrsa_lightning.pretrained_weights import check_finite
from lrsa_lightning.run_config import newest_config
from lrsa_lightning.saved_config import MADE_TOKENIZER
from lrsa_lightning.yaml_text import read_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        checkpoint: a file, or a folder of ZeRO's ranks.
        dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO.

    Raises:
        InputError: the checkpoint does not exist, is corrupt or not of a run; the run's configuration is missing or of
            another model; or a weight is not finite in the dtype.
    """
    from transformers import AutoModelForCausalLM

    run = _configuration(checkpoint)
    config = load_config(*(run["model"][key] for key in ("name_or_path", "from_config", "rope_parameters")))
    state = _weights(checkpoint)
    dtype = dtype or next(iter(state.values())).dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    try:
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{checkpoint} does not hold the weights of its run's model: {said}") from error
    check_finite(model, str(checkpoint), "take another checkpoint or --dtype")
    return TrainedModel(model.eval(), run, checkpoint.absolute().parent.parent)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What Lightning saved in a file or a ZeRO folder: progress, and the states of callbacks and of the datamodule.

    Tensors stay on the disk. It is empty if the path is not a checkpoint.
    """
    if checkpoint.is_file():
        return read_index(checkpoint) or {}
    if any((checkpoint / TAG).glob("*_model_states.pt")):
        from lrsa_lightning.distributed.zero_files import read_client_state

        return read_client_state(checkpoint)
    return {}


def _configuration(checkpoint: Path) -> dict[str, Any]:
    """The newest of the run: a resume with --allow_mismatch may have changed the model's RoPE since the first one."""
    directory = checkpoint.absolute().parent.parent
    path = newest_config(directory)
    if path is None or not checkpoint.exists():
        missing = directory / "config.yaml" if checkpoint.exists() else checkpoint
        raise InputError(f"{missing} does not exist: give a checkpoint of runs/<name>/checkpoints/")
    run = read_mapping(path, "the configuration of a run")
    try:
        run["model"]["name_or_path"], run["data"]["source"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a run ({error!r})") from error
    return run


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of the module, on the CPU."""
    if fault := "is a universal folder" if is_universal(checkpoint) else fault_of(checkpoint):
        raise InputError(f"{checkpoint} {fault}: give another")
    if checkpoint.is_dir():
        try:
            from lrsa_lightning.distributed.zero_files import read_weights
        except ModuleNotFoundError as error:
            raise InputError(f"{checkpoint} needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'") from error
        return read_weights(checkpoint)
    state = (read_index(checkpoint) or {}).get("state_dict")
    if state is None:
        raise InputError(f"{checkpoint} is not a checkpoint of a run: it has no weights, or more than plain data")
    return state
