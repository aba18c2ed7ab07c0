"""Builds the command of a cell with the functions of W&B's agent."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.sweep.definition import Sweep


def build_command(sweep: Sweep, parameters: Mapping[str, Any]) -> list[str]:
    """The words that `wandb agent` would run for these values.

    Args:
        sweep: of `read_sweep`.
        parameters: option and value, in this order.

    Raises:
        InputError: wandb is not installed, or an environment variable of the command is not set. W&B's agent would
            pass on its name.
    """
    try:
        from wandb.sdk.launch.sweeps.utils import (
            SWEEP_COMMAND_ENV_VAR_REGEX,
            create_sweep_command,
            create_sweep_command_args,
        )
    except ModuleNotFoundError:
        raise InputError(
            f"sweep {sweep.name} is read by W&B's functions, which need no account: pip install wandb, or take the "
            "commands of `lrsa sweep --list` from a machine that has it"
        ) from None

    named = [name for word in sweep.command for name in SWEEP_COMMAND_ENV_VAR_REGEX.findall(word)]
    if missing := [name for name in dict.fromkeys(named) if not os.environ.get(name)]:
        raise InputError(f"sweep {sweep.name} reads {', '.join(missing)} from the environment: export it first")
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep.program]}
    words = []
    for word in create_sweep_command(list(sweep.command)):  # it changes its argument
        macro = word[2:-1] if word.startswith("${") and word.endswith("}") else None
        words += [word] if macro is None else macros.get(macro, [])
    return words


def check_options(sweep: Sweep, command: Sequence[str]) -> None:
    """Lets `lrsa` parse a cell's options without running it: an error in all cells is reported once, at the start.

    Raises:
        InputError: `lrsa` refuses an option or a value.
    """
    if Path(sweep.program).name != "lrsa":  # another program may have no --print_config
        return
    try:
        parsed = subprocess.run(
            [*command, "--print_config"], env=cell_environment(), capture_output=True, text=True, errors="replace"
        )
    except OSError:  # the program does not exist: the cells' logs will say so
        return
    if parsed.returncode:
        message = " ".join(parsed.stderr[max(0, parsed.stderr.rfind("error:")) :].split())
        raise InputError(f"sweep {sweep.name}: the first cell's options are refused, nothing was started: {message}")


def cell_environment() -> dict[str, str]:
    """The environment of this process, with the folder of the installed `lrsa` on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
