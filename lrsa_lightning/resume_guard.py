"""What a resumed run must have in common with the run its checkpoint is of."""

import re
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from lrsa_lightning.errors import InputError
from lrsa_lightning.saved_config import with_absolute_paths
from lrsa_lightning.yaml_text import read_mapping

GUARDED = ("seed_everything", "model", "data")
_FREE = re.compile(
    r"data\.(val_files|micro_batch_size|num_workers|prepare_workers|cache_dir)"
    r"|model\.(lr|betas|weight_decay|warmup_steps|gradient_checkpointing|loss_chunk_size)"
    r"|model\.attention\.init_args\.(backend|chunks_per_fill)"
)
_ATTENTION = "model.attention."
Changes = dict[str, tuple[Any, Any]]


class ResumeGuard:
    """Stops a resume whose model, attention, data or seed is not that of the run: the curve would be of neither.

    A new key of model and data is guarded until it is named here as free. Free to change, and named in
    ``config-<n>.diff``: everything of `trainer` (devices, strategy, precision, max_steps,
    which stretches the cosine, logger, callbacks), the optimizer's keys of `model` (of which lr, betas and weight_decay
    come from the checkpoint all the same), `data.micro_batch_size`, `num_workers`, `prepare_workers`, `cache_dir` and
    `val_files`, and `backend` and `chunks_per_fill` of an attention, which change its speed alone.
    """

    def __init__(self, directory: Path):
        """
        Args:
            directory: of the run whose checkpoint is resumed from.
        """
        self.saved = newest_config(directory)

    def check(self, asked: str, allow: bool, defaults: Mapping[str, Any] | None = None) -> None:
        """Compares with the newest configuration of the run, if it has one.

        Args:
            asked: the configuration as YAML.
            allow: whether the user said so.
            defaults: of the command, as nested mappings: what a key means that an older version did not save.

        Raises:
            InputError: they differ where they must not; names each key, its saved value and the one asked for.
        """
        if self.saved is None or allow:
            return
        saved = yaml.safe_dump(with_absolute_paths(read_mapping(self.saved, "the configuration of a run")))
        changes = compare(saved, asked, dict(leaves(defaults or {})) | _attention_defaults(yaml.safe_load(asked)))
        guarded = {key: change for key, change in changes.items() if is_guarded(key)}
        if guarded:
            raise InputError(
                f"this is not the run of {self.saved}; key: saved -> asked\n{describe(guarded)}"
                "\n  resume with the saved values, or give --allow_mismatch true"
            )


def _attention_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments of the attention's class, by their dotted keys."""
    attention = (config.get("model") or {}).get("attention")
    if not isinstance(attention, dict):
        return {}
    parameters = signature(resolve_name(attention["class_path"])).parameters.values()
    plain = {p.name: [*p.default] if isinstance(p.default, tuple) else p.default for p in parameters}
    return {f"{_ATTENTION}init_args.{name}": value for name, value in plain.items()}


def is_guarded(key: str) -> bool:
    """Whether a change of this key makes another run of it."""
    return not _FREE.fullmatch(key) and any(key == guarded or key.startswith(f"{guarded}.") for guarded in GUARDED)


def newest_config(directory: Path) -> Path | None:
    """``config-<n>.yaml`` with the greatest n, or ``config.yaml``."""
    numbers = {path: int(path.stem.split("-")[1]) for path in directory.glob("config-[0-9]*.yaml")}
    first = directory / "config.yaml"
    return max(numbers, key=numbers.get, default=first if first.exists() else None)


def compare(saved: str, asked: str, defaults: Mapping[str, Any] | None = None) -> Changes:
    """The keys of two YAML texts whose values differ, dotted, with both values.

    Args:
        saved: the earlier one.
        asked: the later one.
        defaults: values of keys that the earlier one may lack, dotted.
    """
    # An empty mapping says nothing that its keys in the other text do not.
    before, after = ({k: v for k, v in leaves(yaml.safe_load(text)) if v != {}} for text in (saved, asked))
    keys = [*before, *(key for key in after if key not in before)]
    before |= {key: value for key, value in (defaults or {}).items() if key in after and key not in before}
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def describe(changes: Changes) -> str:
    """One line a change."""
    return "\n".join(f"  {key}: {short(saved)} -> {short(asked)}" for key, (saved, asked) in changes.items())


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested mappings, each with its value; a list is a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def short(value: Any) -> str:
    """A value as YAML, in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
