"""The parsers of our commands: an error is one line that names the key, where it was given and what was expected."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lrsa_lightning.config_files import ConfigFiles
from lrsa_lightning.errors import InputError
from lrsa_lightning.input_boundary import refuse
from lrsa_lightning.library_errors import input_error, reading
from lrsa_lightning.parser_errors import Complaint, read_error
from lrsa_lightning.ranges import is_range, option, range_of
from lrsa_lightning.yaml_text import check_yaml

PARSER_MODE = "omegaconf+"
_MODES = "\n  Attention modes: LRSA, Vanilla, the class_path of your own; files: configs/attention/*.yaml"
_QUOTED = re.compile(r"'([\w.]+)'")


def _load(text: str) -> Any:
    """jsonargparse's reading of a value, which in braces must not hold a key twice, or aliases without end.

    Text that is no YAML is left to jsonargparse, for which it is a text; files were checked as a whole before.
    """
    if text.lstrip().startswith(("{", "[")):
        try:
            check_yaml(text, f"value {text[:60]}{' ...' if text[60:] else ''}")
        except InputError as error:
            if not isinstance(error.__cause__, yaml.YAMLError):
                raise
    return get_loader("yaml")(text)


set_loader(PARSER_MODE, _load, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """jsonargparse's parser, whose errors are one line and name the file that gave the key."""

    _files: ConfigFiles | None = None

    def parse_args(self, args: Sequence[str] | None = None, *further, **keys):
        """
        Raises:
            InputError: a YAML file among the arguments is not what it should be, or refers to what there is not.
        """
        if not hasattr(self, "parent_parser"):  # else a subcommand's, whose arguments the command's parser had
            self._files = ConfigFiles(sys.argv[1:] if args is None else args)
        with reading("the command line and its configs"):
            try:
                parsed = super().parse_args(args, *further, **keys)
            except Exception as error:
                key = getattr(error, "full_key", None)  # of OmegaConf's errors, about ${...}
                if key is None:
                    raise
                self.error(f'Parser key "{key}": {str(error).splitlines()[0]}', error)
        if self._files is not None:
            self._check_names(parsed)
        return parsed

    def _check_names(self, parsed: Namespace) -> None:
        """Refuses a key of a file that holds an empty mapping, whose name jsonargparse then never looks at."""
        known = parsed[parsed.subcommand] if "subcommand" in parsed else parsed
        for key in self._files.keys(levels=2):
            if key not in known:
                self.error(f"Key '{key}' is not accepted")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one of several ways to read a value, whose error the parser weighs
            super().error(message, ex)
        mistake = input_error(ex)
        if mistake is not None:
            refuse(str(mistake), ex)
        if "Config file loop detected" in message:
            message = _before_the_loop(message, ex)
        complaint = read_error(message)
        place = self._place(complaint)
        modes = _MODES if "model.attention" in message else ""
        refuse(f"{complaint}{f' ({place})' if place else ''}{self._way_out(complaint)}{modes}", ex)

    def _place(self, complaint: Complaint) -> str | None:
        """The file and line of the key, if a file gave it."""
        files = getattr(self, "parent_parser", self)._files
        named = _QUOTED.findall(complaint.reason)
        inner = [*reversed(complaint.keys[1:]), *named]
        for key in complaint.keys[:1] or named:
            for name in (key, key.partition(".")[2]):  # the parser may put the subcommand before it
                place = files.place_of(name, *inner) if files is not None else None
                if place is not None:
                    return place
        return None

    def _way_out(self, complaint: Complaint) -> str:
        if complaint.keys or not re.search("accept|unrecognized|subcommand", complaint.reason):
            return ""
        subcommand = re.match(r"Subcommand '(\w+)'", complaint.reason)
        words = [*self.prog.replace(" [options]", "").split(), *(subcommand.groups() if subcommand else ())]
        return f": see `{' '.join(words)} --help`"


def _before_the_loop(message: str, error: BaseException | None) -> str:
    """What was wrong with a file before the parser read it once more, in vain, and called that a loop."""
    while error is not None and not str(error).startswith("Config file loop detected"):
        error = error.__cause__ or error.__context__
    reason = getattr(error, "__context__", None)
    return f"{message.partition(':')[0]}:\n{reason}" if isinstance(reason, ValueError) else message


class ScriptParser(argparse.ArgumentParser):
    """argparse's parser for a script, whose errors are one line, and whose numbers may be types of `ranges`."""

    def __init__(self, description: str):
        """
        Args:
            description: the script's docstring, shown as it is.
        """
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a script may hand on options that it does not know
        )

    def add_argument(self, *names, **keys) -> argparse.Action:
        """argparse's, which also takes the types of `ranges`: the option's help and error say the range."""
        kind = keys.get("type")
        if is_range(kind):
            words = f"{kind.__name__}: {range_of(kind.__name__)}"
            keys |= {"type": option(kind), "help": f"{keys['help']} ({words})" if "help" in keys else words}
        return super().add_argument(*names, **keys)

    def error(self, message: str) -> NoReturn:
        refuse(message.removeprefix("argument ").replace(": is ", " is ", 1))
