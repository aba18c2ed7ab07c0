"""`lrsa completion`: a script with which a shell completes subcommands, options and files."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.errors import InputError

_DESCRIPTION = """Prints a script with which a shell completes subcommands, options and files. Needs the package shtab.

Examples: lrsa completion bash > ~/.local/share/bash-completion/completions/lrsa
          lrsa completion zsh > ~/.zfunc/_lrsa      (with fpath+=~/.zfunc before compinit)
"""


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa completion")
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Prints the script."""
    shell = make_parser().parse_args(args).shell
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise InputError("the package shtab makes the script: pip install shtab") from error
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr):  # what an import prints is not part of the script
        parser = _whole_command(shtab.FILE)
    print(shtab.complete(parser, shell))


def _whole_command(files: dict) -> argparse.ArgumentParser:
    """`lrsa` with all subcommands. Options of any value complete to ``files``.

    The parsers themselves are not handed to shtab: jsonargparse offers each argument of each class that a callback or a
    strategy may be, which makes a script of 20 MB.
    """
    whole = argparse.ArgumentParser(prog="lrsa")
    whole.add_argument("--version", action="store_true")
    subcommands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = subcommands.add_parser(name, help=command.description, conflict_handler="resolve")
        for option in _options(command.parsers()):
            if option.nargs == 0:
                parser.add_argument(*_names(option), action="store_true")
                continue
            added = parser.add_argument(*_names(option) or [option.dest], nargs=option.nargs, choices=option.choices)
            if not option.choices:
                added.complete = files
    return whole


def _options(parsers: list[argparse.ArgumentParser]) -> Iterator[argparse.Action]:
    for parser in parsers:
        for action in parser._actions:  # argparse has no public list; shtab reads this one
            if action.help != argparse.SUPPRESS and "--help" not in action.option_strings and not _is_link(action):
                yield action


def _is_link(action: argparse.Action) -> bool:
    """Whether the value of an option of jsonargparse follows from others."""
    return "-->" in "".join(action.option_strings)


def _names(option: argparse.Action) -> list[str]:
    """The names of an option, without those that append to a list."""
    return [name for name in option.option_strings if not name.endswith("+")]
