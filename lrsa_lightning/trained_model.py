"""What a run's checkpoint holds: the trained model with its configuration, and the state beside the weights."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from lrsa_lightning.checkpoints.atomic_files import TAG, is_universal
from lrsa_lightning.checkpoints.last import fault_of, find_last, read_index
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.yaml_text import read_mapping
from lrsa_lightning.hub import bars_in_terminals_only
from lrsa_lightning.library_errors import reading
from lrsa_lightning.lora.adapters import check_keys, merged, trained_parameters
from lrsa_lightning.lora.folder import AdapterOnly
from lrsa_lightning.pretrained.starting_model import StartingModel
from lrsa_lightning.pretrained.weights import check_finite
from lrsa_lightning.run.config import newest_config
from lrsa_lightning.run.saved_config import MADE_TOKENIZER
from lrsa_lightning.saved_settings import set_aside

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lrsa_lightning.attention import AttentionMode


@dataclass(frozen=True)
class TrainedModel:
    """A model taken from a run.

    Attributes:
        model: in evaluation mode.
        config: the run's resolved configuration.
        folder: the run directory.
        template: for what the model is asked.
    """

    model: "PreTrainedModel"
    config: dict[str, Any]
    folder: Path
    template: str

    @property
    def tokenizer_name(self) -> str:
        """Hub id or folder of its tokenizer."""
        return _tokenizer_name(self.config, self.folder)


class RunCheckpoint:
    """A checkpoint of a run, and the run's newest configuration. It reads no weights before `load`.

    Attributes:
        path: a file, or a folder of ZeRO's ranks.
        run: the run's resolved configuration.
        folder: the run directory.
    """

    def __init__(self, path: Path):
        """
        Args:
            path: ``runs/<name>/checkpoints/<file or ZeRO folder>``.

        Raises:
            InputError: the checkpoint does not exist, or the run's configuration is missing.
        """
        self.path = path
        self.run = _configuration(path)
        self.folder = path.absolute().parent.parent

    @property
    def tokenizer_name(self) -> str:
        """Hub id or folder of its tokenizer."""
        return _tokenizer_name(self.run, self.folder)

    @cached_property
    def template(self) -> str:
        """The template for what the model is asked. The checkpoint says what auto meant for the train files."""
        chosen = self.run["data"].get("template", "base")
        if chosen != "auto":
            return chosen
        with reading(f"{self.path} cannot be read"):
            state = {} if fault_of(self.path) else read_state(self.path)
        return state.get("LongContextDataModule", {}).get("template", "base")

    @cached_property
    def attention(self) -> "AttentionMode":
        """The mode of the run.

        Raises:
            InputError: its configuration names no mode that there is.
        """
        return _mode(self.run["model"].get("attention"), f"model.attention of {self.folder}")

    @cached_property
    def starting_model(self) -> StartingModel:
        """The model that the run started from."""
        with reading(f"model.lora of {self.folder}"):
            return StartingModel.of_run(self.run["model"])

    @cached_property
    def model_config(self):
        """The model's transformers configuration."""
        return self.starting_model.load_config()

    def load(self, dtype: torch.dtype | None = None) -> "PreTrainedModel":
        """The model with the checkpoint's weights, in evaluation mode; adapters are merged into their base.

        Args:
            dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO.

        Raises:
            InputError: the checkpoint is corrupt, or of another model; or a weight is not finite in the dtype.
        """
        config, state = self.model_config, self.weights()
        dtype = dtype or next(iter(state.values())).dtype
        with set_aside(config):
            if self.starting_model.has_adapters:
                model = merged(self._with_adapters(state, dtype), dtype)
            else:
                model = _with_weights(config, state, dtype, self.path)
        check_finite(model, str(self.path), "take another checkpoint or --dtype")
        return model.eval()

    def load_adapter(self, dtype: torch.dtype | None = None) -> AdapterOnly:
        """The checkpoint's adapters alone.

        Args:
            dtype: of the adapters; the checkpoint's own if None.

        Raises:
            InputError: the run trained no adapters, or as in `load`.
        """
        if not self.starting_model.has_adapters:
            raise InputError(f"{self.folder} trained all weights, so it has no adapter: leave --adapter out")
        state = self.weights()
        with torch.device("meta"):
            peft_model = self._with_adapters({name: z.to(dtype or z.dtype) for name, z in state.items()}, None)
        return AdapterOnly(peft_model, self.starting_model.given_rope)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights in the checkpoint, by their names in the model: all, or those that were trained beside a base."""
        return {name.removeprefix("model."): weight for name, weight in _weights(self.path).items()}

    def _with_adapters(self, state: dict[str, torch.Tensor], dtype: torch.dtype | None) -> "PeftModel":
        peft_model = self.starting_model.load_adapted(self.model_config, dtype)
        model = peft_model.get_base_model()
        check_keys(state, trained_parameters(model), str(self.path))
        try:
            model.load_state_dict(state, strict=False, assign=model.device.type == "meta")
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            raise InputError(f"{self.path} does not hold the adapters of its run: {said}") from error
        return peft_model


def _with_weights(config, state: dict[str, torch.Tensor], dtype: torch.dtype, path: Path) -> "PreTrainedModel":
    """The model around these very tensors, cast. Weights of a model made before would be a second copy.

    Args:
        config: the model's.
        state: all weights by name; the cast ones afterwards.
        dtype: of the weights.
        path: their checkpoint.

    Raises:
        InputError: the weights are of another model.
    """
    from transformers import AutoModelForCausalLM

    for name, weight in state.items():
        state[name] = weight.to(dtype)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    names = {id(weight): name for name, weight in reversed(empty.state_dict(keep_vars=True).items())}
    try:
        empty.load_state_dict(state, assign=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not hold the weights of its run's model: {said}") from error
    # A tied head is left out: transformers 5.2 does not tie one that is given.
    weights = {name: state[name] for name in names.values()}
    settings = {"config": config, "state_dict": weights, "dtype": dtype}
    with bars_in_terminals_only():
        return type(empty).from_pretrained(None, trust_remote_code=False, **settings)


def load_checkpoint(checkpoint: Path, dtype: torch.dtype | None = None) -> TrainedModel:
    """The model of ``runs/<name>/checkpoints/<file or ZeRO folder>``, by the run's newest configuration.

    Args:
        checkpoint: a file, or a folder of ZeRO's ranks.
        dtype: of the weights; the checkpoint's own if None, which is float32 for ZeRO.

    Raises:
        InputError: the checkpoint does not exist, is corrupt or not of a run; the run's configuration is missing or of
            another model; or a weight is not finite in the dtype.
    """
    found = RunCheckpoint(checkpoint)
    return TrainedModel(found.load(dtype), found.run, found.folder, found.template)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run directory means, which is its last one; else the path itself.

    Raises:
        InputError: a folder is neither a run nor a checkpoint, or a run has no complete checkpoint.
    """
    if not source.is_dir() or any((source / name).exists() for name in ("latest", "latest_universal")):
        return source
    if not (source / "config.yaml").exists():
        raise InputError(
            f"{source} is neither a run (it has no config.yaml) nor a checkpoint: give runs/NAME or a checkpoint of it"
        )
    last = find_last(source / "checkpoints").path
    if last is None:
        raise InputError(f"{source} has no complete checkpoint in {source / 'checkpoints'}")
    return last


def take_generation_config(model, name_or_path: str | None) -> None:
    """Takes the generation configuration of the model that a run started from, if that has one."""
    from transformers import GenerationConfig

    if name_or_path is not None:
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)


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


def _tokenizer_name(run: dict[str, Any], folder: Path) -> str:
    data = run["data"]
    if data["source"] == "demo":
        beside = folder / MADE_TOKENIZER
        return str(beside if beside.is_dir() else Path(data["cache_dir"]) / "demo" / "tokenizer")
    return data["tokenizer"] or run["model"]["name_or_path"]


def _mode(given: Any, where: str) -> "AttentionMode":
    if not isinstance(given, dict) or "class_path" not in given:
        raise InputError(f"{where} is {given!r}: expected a mode as in configs/attention/*.yaml")
    try:
        with reading(where):
            return resolve_name(given["class_path"])(**given.get("init_args") or {})
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"{where} cannot be made ({error}): expected a mode as in configs/attention/*.yaml") from error
