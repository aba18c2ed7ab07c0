"""A run's configuration: what each key decides, and what differs between two configurations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from lrsa_lightning.files.yaml_text import read_mapping

# config.yaml of a run's start, config-<n>.yaml of each resume.
CONFIG_NAME = re.compile(r"config(?:-(\d+))?\.yaml")
# Keys of `data` that change neither the training samples nor their order.
_NO_EFFECT_ON_SAMPLES = ("val_files", "micro_batch_size", "num_workers", "prepare_workers", "cache_dir")
# A resumed run keeps the values of these sections, but for the free keys. A new key is guarded until it is named here.
_GUARDED = ("seed_everything", "model", "data")
_FREE = re.compile(
    rf"data\.({'|'.join(_NO_EFFECT_ON_SAMPLES)})"
    r"|model\.(lr|betas|weight_decay|warmup_steps|recompute|gradient_checkpointing|fused_layers|loss_chunk_size)"
    r"|model\.scheduler(\..*)?"
    r"|model\.attention\.init_args\.(backend|chunks_per_fill)"
)
# Each node may have a disk of its own; the rest of the configuration decides what is on it.
_OF_A_NODE = ("data.cache_dir",)
# What a cache budget means at a length, with the defaults of RulerEval.
CACHE_SIZES = {"lag_divisor": 32, "sink_size": 16}

Changes = dict[str, tuple[Any, Any]]


class RunConfig:
    """The configuration of one run.

    A section that is missing or malformed counts as empty: earlier versions and other programs wrote files, too.

    Attributes:
        values: nested mappings, as in config.yaml.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        self.values = dict(values or {})

    @classmethod
    def of_directory(cls, directory: Path) -> "RunConfig":
        """The newest configuration of a run directory; empty where there is none.

        Raises:
            InputError: the file holds no configuration.
        """
        path = newest_config(directory)
        return cls(None if path is None else read_mapping(path, "the configuration of `lrsa fit`"))

    @cached_property
    def keys(self) -> dict[str, Any]:
        """All values by dotted key. A list is one value; an empty mapping has none."""
        return {key: value for key, value in _leaves(self.values) if value != {}}

    @property
    def attention(self) -> str:
        """The attention mode in training, with its sizes."""
        mode = self._section("model").get("attention")
        if not isinstance(mode, dict) or "class_path" not in mode:
            return str(mode or "")
        arguments = _mapping(mode.get("init_args"))
        names = ["lag_size", "retention_ratio", "sink_size"]
        if isinstance(arguments.get("retention_ratio"), list):
            names[2:2] = ["retention_weights", "retention_schedule"]
        sizes = [f"{name}={arguments[name]}" for name in names if arguments.get(name) is not None]
        return str(mode["class_path"]).rsplit(".", 1)[-1] + (f"({', '.join(sizes)})" if sizes else "")

    @property
    def attention_defaults(self) -> dict[str, Any]:
        """The default arguments of the attention's class, by dotted key."""
        attention = self._section("model").get("attention")
        if not isinstance(attention, dict):
            return {}
        parameters = signature(resolve_name(attention["class_path"])).parameters.values()
        plain = {p.name: [*p.default] if isinstance(p.default, tuple) else p.default for p in parameters}
        return {f"model.attention.init_args.{name}": value for name, value in plain.items()}

    @property
    def trained_on(self) -> dict[str, Any]:
        """What decides on the training samples, their order and the number of tokens; empty without configuration."""
        data, trainer = self._section("data"), self._section("trainer")
        named = {f"data.{key}": value for key, value in data.items() if key not in _NO_EFFECT_ON_SAMPLES}
        named |= {f"trainer.{key}": trainer[key] for key in ("max_steps", "max_epochs") if key in trainer}
        return named | {key: self.values[key] for key in ("seed_everything",) if key in self.values}

    @property
    def but_seed(self) -> dict[str, Any]:
        """What decides on the trained model, but the seed, by dotted key; empty without configuration."""
        no_effect = {"seed_everything", "data.seed", *(f"data.{key}" for key in _NO_EFFECT_ON_SAMPLES)}
        limits = ("trainer.max_steps", "trainer.max_epochs")
        deciding = (key for key in self.keys if key.startswith(("model.", "data.")) or key in limits)
        return {key: self.keys[key] for key in deciding if key not in no_effect}

    @property
    def cache_sizes(self) -> dict[str, Any]:
        """What RulerEval's cache budgets mean at a length; empty where the run has no RulerEval."""
        callbacks = self._section("trainer").get("callbacks")
        for callback in callbacks if isinstance(callbacks, list) else []:
            if str(_mapping(callback).get("class_path")).endswith("RulerEval"):
                arguments = _mapping(callback.get("init_args"))
                return {key: arguments.get(key, default) for key, default in CACHE_SIZES.items()}
        return {}

    @property
    def of_all_ranks(self) -> dict[str, Any]:
        """What all processes of a run must agree on, by dotted key."""
        return {key: value for key, value in self.keys.items() if key not in _OF_A_NODE}

    def changes(self, later: "RunConfig", defaults: Mapping[str, Any] | None = None) -> Changes:
        """The keys whose values differ, with the earlier and the later value.

        The defaults, by dotted key, stand for keys that the earlier configuration lacks.
        """
        before, after = dict(self.keys), later.keys
        keys = dict.fromkeys((*before, *after))
        before |= {key: value for key, value in (defaults or {}).items() if key in after and key not in before}
        return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}

    def _section(self, key: str) -> dict[str, Any]:
        return _mapping(self.values.get(key))


def newest_config(directory: Path) -> Path | None:
    """The newest configuration file of a run directory; None where there is none."""
    files = directory.glob("config*.yaml")
    numbers = {path: int(name[1] or 0) for path in files if (name := CONFIG_NAME.fullmatch(path.name))}
    return max(numbers, key=numbers.get, default=None)


def is_guarded(key: str) -> bool:
    """Whether a resumed run must keep the value of this dotted key."""
    return key.split(".")[0] in _GUARDED and not _FREE.fullmatch(key)


def differing(of_each: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all mappings, with the value of each; a missing one is None."""
    keys = dict.fromkeys(key for values in of_each for key in values)
    found = {key: [values.get(key) for values in of_each] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def describe(changes: Changes) -> str:
    """One line for each change."""
    return "\n".join(f"  {key}: {short(before)} -> {short(after)}" for key, (before, after) in changes.items())


def short(value: Any) -> str:
    """A value as YAML, in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _mapping(value: Any) -> dict[str, Any]:
    """The value, or an empty mapping in the place of anything else."""
    return value if isinstance(value, dict) else {}
