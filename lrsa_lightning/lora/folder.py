"""A folder with a LoRA adapter, as peft writes it, and what training changed in the base's configuration beside it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.hub import before_loading
from lrsa_lightning.library_errors import reading
from lrsa_lightning.lora.adapters import adapted, check_keys
from lrsa_lightning.saved_settings import KEY, TEMPLATE

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Not config.json: transformers takes a folder that has one for a complete model.
CHANGES = "base_config.json"
_KEYS = (KEY, TEMPLATE, "rope_parameters")


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter by its folder or hub id.

    Attributes:
        name: folder or hub id.
        path: its adapter_config.json.
    """

    name: str
    path: Path

    @classmethod
    def of(cls, name_or_path: str) -> "AdapterFolder | None":
        """The adapter of this name; None if it is none."""
        if Path(name_or_path).exists():
            path = Path(name_or_path) / CONFIG
            return cls(name_or_path, path) if path.is_file() else None
        from transformers.utils import find_adapter_config_file

        before_loading(name_or_path)
        try:
            found = find_adapter_config_file(name_or_path)
        except (OSError, ValueError):  # whatever is loaded next says what is wrong with the name
            return None
        return cls(name_or_path, Path(found)) if found else None

    @cached_property
    def config(self) -> "LoraConfig":
        """peft's configuration.

        Raises:
            InputError: it cannot be read, or is of another kind than LoRA.
        """
        from peft import LoraConfig, PeftConfig

        with reading(f"{self.path}", "give the folder of a LoRA adapter"):
            config = PeftConfig.from_pretrained(self.name)
        if not isinstance(config, LoraConfig):
            raise InputError(f"{self.path} is of peft_type {config.peft_type}: only LORA can be trained and evaluated")
        config.inference_mode = False
        return config

    @property
    def base(self) -> str:
        """Hub id or folder of the model that the adapter belongs to.

        Raises:
            InputError: it names none, or another adapter.
        """
        base = self.config.base_model_name_or_path
        if not base:
            raise InputError(f"{self.path} names no base: {self._way_out}")
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise InputError(f"the base of the adapter {self.name}, {base}, does not exist: {self._way_out}")
        if (Path(base) / CONFIG).exists():
            raise InputError(f"the base of the adapter {self.name}, {base}, is an adapter itself: {self._way_out}")
        return base

    @property
    def _way_out(self) -> str:
        return f"set base_model_name_or_path in {CONFIG} to the folder or hub id of the model"

    @property
    def changes(self) -> dict[str, Any]:
        """What training changed in the base's configuration, if it did: rule, template and ``rope_parameters``.

        Raises:
            InputError: the file beside the adapter is none of ours.
        """
        path = self.path.with_name(CHANGES)
        if not path.is_file():
            return {}
        try:
            changes = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): copy the folder again") from error
        if not isinstance(changes, dict) or not changes.keys() <= {*_KEYS}:
            raise InputError(f"{path} is {str(changes)[:80]}: give it {KEY} and rope_parameters, or remove it")
        return changes

    def check(self) -> None:
        """Raises InputError if a local folder lacks the weights."""
        folder = Path(self.name)
        if folder.is_dir() and not any((folder / name).is_file() for name in _WEIGHTS):
            raise InputError(f"model.name_or_path {self.name} lacks {_WEIGHTS[0]}: copy the folder again")

    def put_into(self, model: "PreTrainedModel") -> "PeftModel":
        """Puts the adapter into its base, in place; on the meta device without its weights.

        Raises:
            InputError: the weights are corrupt, or are not those of the model.
        """
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        peft_model = adapted(model, self.config, f"the adapter {self.name}")
        if model.device.type == "meta":
            return peft_model
        with reading(f"the weights of the adapter {self.name}", "copy the folder again"):
            state = load_peft_weights(self.name, device="cpu")
        check_keys(state, get_peft_model_state_dict(peft_model), f"the adapter {self.name}")
        with reading(f"the weights of the adapter {self.name}", "give an adapter of its base model"):
            set_peft_model_state_dict(peft_model, state)
        return peft_model


def home_of_tokenizer(name_or_path: str) -> str:
    """The folder or hub id with a model's tokenizer: the base where an adapter brings none."""
    folder = Path(name_or_path)
    if not (folder / CONFIG).is_file() or any(folder.glob("tokenizer*")):
        return name_or_path
    return AdapterFolder(name_or_path, folder / CONFIG).base


class AdapterOnly:
    """A model that saves its adapter alone, in the form of a transformers model."""

    def __init__(self, peft_model: "PeftModel", rope_parameters: dict[str, Any] | None):
        """
        Args:
            peft_model: the adapters in their base, which may be on the meta device.
            rope_parameters: those that the run gave to the base.
        """
        self._peft_model, self._rope_parameters = peft_model, rope_parameters
        self.config = peft_model.get_base_model().config
        self.generation_config = peft_model.get_base_model().generation_config

    def save_pretrained(self, folder: Path) -> None:
        """Writes the adapter as peft does, what training changed in the configuration, and how answers end."""
        config = self._peft_model.peft_config["default"]
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)  # the same file each time
        # Without embeddings: peft would look for a base on the hub. A trained embedding is in the adapter.
        self._peft_model.save_pretrained(folder, save_embedding_layers=False)
        self.generation_config.save_pretrained(folder)
        changes = {name: getattr(self.config, name, None) for name in (KEY, TEMPLATE)}
        changes["rope_parameters"] = self._rope_parameters
        if changes := {key: value for key, value in changes.items() if value}:
            (folder / CHANGES).write_text(json.dumps(changes, indent=2) + "\n", encoding="utf-8")
