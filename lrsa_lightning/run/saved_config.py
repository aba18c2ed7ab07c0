"""Saves a run's configuration as YAML that means the same in any folder, and recognises such a file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.run.config import CONFIG_NAME
from lrsa_lightning.run.secret_values import Secrets

# Folder of a tokenizer that the run made itself; otherwise only a cache would hold it.
MADE_TOKENIZER = "tokenizer"
# Options that may name a file or folder. A value that names no existing one is a hub id. An entry of the data files may
# be a mapping with the path.
_FILES_OR_FOLDERS = (
    "train_files",
    "val_files",
    "path",
    "tokenizer",
    "name_or_path",
    "reference",
    "essays",
    "squad",
    "hotpotqa",
    "english_words",
)
# Folders that the run makes.
_MADE = ("cache_dir", "dirpath")


def contents(parser, config) -> dict[str, Any]:
    """The configuration as nested mappings, with absolute paths."""
    return with_absolute_paths(yaml.safe_load(parser.dump(config, skip_none=False, skip_link_targets=True)))


def dump(parser, config) -> str:
    """The configuration as YAML that `--config` reads. References to the environment stand for secrets."""
    return yaml.safe_dump(Secrets(contents(parser, config)).masked, sort_keys=False)


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Makes the paths of existing files and folders absolute; they are relative to the working directory."""
    config = dict(config)
    data = config.get("data") or {}
    if mixture := data.get("mixture"):
        given = data.get("train_files") or []
        entries = given if isinstance(given, list) else [given]
        named = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
        paths = {name: _absolute(name, "train_files") if name in named else name for name in mixture}
        config["data"] = data | {"mixture": {paths[name]: weight for name, weight in mixture.items()}}
    for section in ("model", "data", "trainer"):
        if section in config:
            config[section] = _with_absolute(config[section], section)
    return config


def own_config(files: Sequence[Any] | None) -> Path | None:
    """The last of the --config files that a run saved itself, which is beside its versions; None without one."""
    for file in reversed(files or []):
        path = Path(str(file))
        if CONFIG_NAME.fullmatch(path.name) and path.with_name(path.name.replace("config", "versions")).is_file():
            return path
    return None


def _with_absolute(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _with_absolute(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_absolute(item, key) for item in value]
    return _absolute(value, key) if isinstance(value, str) and value else value


def _absolute(path: str, key: str) -> str:
    exists = key in _FILES_OR_FOLDERS and os.path.exists(path)
    return os.path.abspath(path) if key in _MADE or exists else path
