"""The command of a cell, built by W&B's own functions as its agent does."""

import os
from collections.abc import Mapping
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.sweep.definition import Sweep


def build_command(sweep: Sweep, parameters: Mapping[str, Any]) -> list[str]:
    """The words that `wandb agent` would run for these values.

    Args:
        sweep: of `read_sweep`.
        parameters: option and value, in the order they are given in.

    Raises:
        InputError: an environment variable of the command is not set; the agent would pass its name on.
    """
    from wandb.sdk.launch.sweeps.utils import (
        SWEEP_COMMAND_ENV_VAR_REGEX,
        create_sweep_command,
        create_sweep_command_args,
    )

    named = [name for word in sweep.command for name in SWEEP_COMMAND_ENV_VAR_REGEX.findall(word)]
    if missing := [name for name in dict.fromkeys(named) if not os.environ.get(name)]:
        raise InputError(f"sweep {sweep.name} reads {', '.join(missing)} from the environment: export it first")
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep.program]}
    words = []
    for word in create_sweep_command(list(sweep.command)):  # it changes the list it is given
        macro = word[2:-1] if word.startswith("${") and word.endswith("}") else None
        words += [word] if macro is None else macros.get(macro, [])
    return words
