"""The parser of the commands without YAML files. It needs neither Lightning nor torch, so help is there at once."""

import argparse
import re
from typing import NoReturn

from lrsa_lightning.command_line.input_boundary import refuse
from lrsa_lightning.errors import suggestion
from lrsa_lightning.ranges import is_range, option, range_of


class ScriptParser(argparse.ArgumentParser):
    """argparse's parser for a command, with errors of one line. Options may have the types of `ranges`.

    The description is shown as it is.
    """

    _names: tuple[str, ...] = ()

    def __init__(self, description: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a command may pass on options that it does not know
        )

    def add_argument(self, *names, **keys) -> argparse.Action:
        """Adds an option. Its help and its error state the range of a type of `ranges`."""
        kind = keys.get("type")
        if is_range(kind):
            words = f"{kind.__name__}: {range_of(kind.__name__)}"
            keys |= {"type": option(kind), "help": f"{keys['help']} ({words})" if "help" in keys else words}
        self._names = (*self._names, *names)
        return super().add_argument(*names, **keys)

    def error(self, message: str) -> NoReturn:
        if (unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message)) is not None:
            message += suggestion(unknown[1], self._names) or f": see `{self.prog} --help`"
        refuse(message.removeprefix("argument ").replace(": is ", " is ", 1))
