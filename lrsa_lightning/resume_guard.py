"""Refuses to resume a run with a configuration that makes it another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.errors import InputError
from lrsa_lightning.run_config import RunConfig, describe, is_guarded, newest_config
from lrsa_lightning.saved_config import with_absolute_paths


class ResumeGuard:
    """Compares a requested configuration with the newest one of the run that is resumed.

    Model, attention, data and seed must be those of the run: otherwise the loss curve mixes two runs. Free to change,
    and listed in ``config-<n>.diff``, are:

    - all keys of `trainer`: devices, strategy, precision, logger, callbacks and max_steps, which stretches the cosine
    - of `model`, the keys of the optimizer (lr, betas and weight_decay come from the checkpoint all the same) and
      those that only trade memory for time
    - of `data`, the keys that change neither samples nor order
    - of an attention, `backend` and `chunks_per_fill`, which only change its speed
    """

    def __init__(self, directory: Path):
        """
        Args:
            directory: of the run that the checkpoint belongs to.
        """
        self._directory = directory

    def check(self, requested: str, allow: bool, defaults: Mapping[str, Any] | None = None) -> None:
        """Compares, if the run has a configuration.

        Args:
            requested: the configuration as YAML.
            allow: whether the user allows any difference.
            defaults: of the command, as nested mappings. They stand for keys that an older version did not save.

        Raises:
            InputError: a guarded key differs; names each key with its saved and its requested value.
        """
        path = newest_config(self._directory)
        if path is None or allow:
            return
        saved = RunConfig(with_absolute_paths(RunConfig.of_directory(self._directory).values))
        now = RunConfig(yaml.safe_load(requested))
        changes = saved.changes(now, RunConfig(defaults).keys | now.attention_defaults)
        guarded = {key: change for key, change in changes.items() if is_guarded(key)}
        if guarded:
            raise InputError(
                f"this is not the run of {path}; key: saved -> requested\n{describe(guarded)}"
                "\n  resume with the saved values, or give --allow_mismatch true"
            )
