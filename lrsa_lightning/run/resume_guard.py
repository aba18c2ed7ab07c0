"""Refuses to resume a run with a configuration that makes it another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.errors import InputError
from lrsa_lightning.run.config import RunConfig, describe, is_guarded, newest_config
from lrsa_lightning.run.saved_config import with_absolute_paths


def check_resume(directory: Path, requested: str, defaults: Mapping[str, Any] | None = None) -> None:
    """Compares a requested configuration with the newest one of the run that is resumed, if that has one.

    Model, attention, data and seed must be those of the run: otherwise the loss curve mixes two runs. Free to change,
    and listed in ``config-<n>.diff``, are:

    - all keys of `trainer`: devices, strategy, precision, logger, callbacks and max_steps, the length of the schedule
    - of `model`, the schedule, lr, betas and weight_decay (which come from the checkpoint all the same), and
      those that only trade memory for time
    - of `data`, the keys that change neither samples nor order
    - of an attention, `backend` and `chunks_per_fill`, which only change its speed

    Args:
        directory: of the run that the checkpoint belongs to.
        requested: the configuration as YAML.
        defaults: of the command, as nested mappings. They stand for keys that an older version did not save.

    Raises:
        InputError: a guarded key differs; names each key with its saved and its requested value.
    """
    path = newest_config(directory)
    if path is None:
        return
    saved = RunConfig(with_absolute_paths(RunConfig.of_directory(directory).values))
    now = RunConfig(yaml.safe_load(requested))
    changes = saved.changes(now, RunConfig(defaults).keys | now.attention_defaults)
    if guarded := {key: change for key, change in changes.items() if is_guarded(key)}:
        raise InputError(
            f"this is not the run of {path}; key: saved -> requested\n{describe(guarded)}"
            "\n  resume with the saved values, or give --allow_mismatch true"
        )
