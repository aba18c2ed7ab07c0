"""What MODEL_OR_RUN means to vLLM: a folder or hub id, its rule, and the arguments of the engine."""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.attention.saved_mode import saved_mode
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.errors import InputError
from lrsa_lightning.lora.folder import AdapterFolder
from lrsa_lightning.model_folder.export import export
from lrsa_lightning.model_folder.place import MANIFEST
from lrsa_lightning.pretrained import load_config
from lrsa_lightning.saved_settings import KEY, MARK
from lrsa_lightning.serving.vllm.plugin import ARCHITECTURES
from lrsa_lightning.serving.vllm.settings import at_ratio, block_sizes, check_shape, fitting_block_size
from lrsa_lightning.trained_model import RunCheckpoint, find_checkpoint

log = logging.getLogger(__name__)
_EXPORTED = "exported"


@dataclass(frozen=True)
class ServedModel:
    """A model that vLLM can load by its name.

    Attributes:
        name: folder or hub id.
    """

    name: str

    @classmethod
    def of(cls, name: str) -> "ServedModel":
        """The model of a folder, a hub id, a run or a checkpoint. A run is exported into its directory first.

        Raises:
            InputError: it is none of them, or an adapter.
        """
        if AdapterFolder.of(name) is not None:
            raise InputError(f"{name} is an adapter: merge it first, with lrsa export {name} --output FOLDER")
        ModelSource(name)  # says what is wrong with the name
        path = Path(name).expanduser()
        is_run = path.exists() and not (path / "config.json").is_file()
        return cls(str(_exported(path) if is_run else path if path.exists() else name))

    @cached_property
    def config(self) -> Any:
        """The model's transformers configuration."""
        return load_config(self.name, None)

    @cached_property
    def mode(self) -> LRSA | None:
        """The mode that config.json names, if it names one."""
        return saved_mode(self.config)

    @property
    def stock_architecture(self) -> str:
        """The name of the model's class in transformers and vLLM."""
        names = self.config.architectures
        if not names:
            raise InputError(f"{self.name}: config.json names no architecture, by which vLLM finds the model's class")
        return names[0].removeprefix(MARK)

    def engine(self, retention_ratio: float | None = None) -> dict[str, Any]:
        """The arguments of vLLM's engine under the folder's rule; a folder without a rule runs full attention.

        Args:
            retention_ratio: in place of the folder's.

        Raises:
            InputError: there is no rule to change.
        """
        arguments: dict[str, Any] = {"model": self.name}
        if self.mode is None:
            if retention_ratio is not None:
                raise InputError(f"{self.name} names no rule in config.json, so it has no retention ratio to change")
            return arguments
        name = f"{MARK}{self.stock_architecture}"
        if self.config.architectures != [name]:  # written by transformers alone, or by an older version
            arguments["hf_overrides"] = {"architectures": [name]}
        if retention_ratio is not None:
            arguments["additional_config"] = {KEY: {"retention_ratio": retention_ratio}}
        return arguments

    def dense_engine(self) -> dict[str, Any]:
        """The arguments of vLLM's engine with its own full attention, whatever the folder names."""
        if self.mode is None:
            return {"model": self.name}
        return {"model": self.name, "hf_overrides": {"architectures": [self.stock_architecture], KEY: None}}

    def check(self, device_type: str, retention_ratio: float | None = None) -> None:
        """Refuses a rule that vLLM cannot follow exactly, before vLLM starts.

        Args:
            device_type: cpu, cuda and so on.
            retention_ratio: in place of the folder's.

        Raises:
            InputError: the model, its rule or its blocks do not fit.
        """
        self.engine(retention_ratio)
        if self.mode is None:
            log.info("%s names no rule in config.json: vLLM runs full attention", self.name)
            return
        if f"{MARK}{self.stock_architecture}" not in ARCHITECTURES:
            known = ", ".join(name.removeprefix(MARK) for name in ARCHITECTURES)
            raise InputError(f"vLLM runs LRSA in {known}, and {self.name} is a {self.stock_architecture}")
        mode = self.mode if retention_ratio is None else at_ratio(self.mode, retention_ratio)
        mode.check(self.config)
        check_shape(self.config)
        if mode.rule().drops_tokens:
            fitting_block_size(mode.rule(), *block_sizes(device_type))


def _exported(source: Path) -> Path:
    """The folder of a run's or checkpoint's model, in the run's directory; an up-to-date one is taken as it is."""
    checkpoint = find_checkpoint(source)
    folder = RunCheckpoint(checkpoint).folder / _EXPORTED
    if _is_of(folder / MANIFEST, checkpoint):
        log.info("%s holds %s already", folder, checkpoint.name)
    else:
        log.info("exporting %s to %s", checkpoint, folder)
        export(checkpoint, folder, overwrite=True)
    return folder


def _is_of(manifest: Path, checkpoint: Path) -> bool:
    """Whether an export is of a checkpoint, and newer."""
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        return facts["checkpoint"] == checkpoint.name and manifest.stat().st_mtime >= checkpoint.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return False
