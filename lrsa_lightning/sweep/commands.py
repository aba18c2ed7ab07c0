"""The command of a cell, built by W&B's own functions as its agent does."""

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


def check_options(sweep: Sweep, command: Sequence[str]) -> None:
    """Has `lrsa` read a cell's options and do nothing else: what is wrong in all cells is said once, before any runs.

    Args:
        sweep: of `read_sweep`; one over another program is not looked at.
        command: of a cell.

    Raises:
        InputError: an option that there is not, or a value that it does not take.
    """
    if Path(sweep.program).name != "lrsa":
        return
    try:
        read = subprocess.run(
            [*command, "--print_config"], env=cell_environment(), capture_output=True, text=True, errors="replace"
        )
    except OSError:  # the program is not there, which the cells' logs say
        return
    if read.returncode:
        said = " ".join(read.stderr[max(0, read.stderr.rfind("error:")) :].split())
        raise InputError(f"sweep {sweep.name}: the first cell's options are refused, nothing was started: {said}")


def cell_environment() -> dict[str, str]:
    """This process's, with the place where `lrsa` is installed."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
