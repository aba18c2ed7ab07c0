"""The package's YAML files, under the names that they have in a clone."""

from collections.abc import Sequence
from pathlib import Path

from lrsa_lightning.configs import CONFIG_DIR

_FOLDER = "configs/"


def with_installed(arguments: Sequence[str]) -> list[str]:
    """A command line in which ``configs/...`` is the installed file, unless the current folder has a file of that name.

    Args:
        arguments: words of the command line; a file is a word, or the value in ``--key=value``.
    """
    return [_installed(argument) for argument in arguments]


def _installed(argument: str) -> str:
    key, is_joined, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if not value.startswith(_FOLDER) or Path(value).exists():
        return argument
    installed = CONFIG_DIR / value.removeprefix(_FOLDER)
    return f"{key}{is_joined}{installed}" if installed.is_file() else argument
