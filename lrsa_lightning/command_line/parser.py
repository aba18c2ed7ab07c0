"""The parser of YAML files and options. An error is one line: the key, where it was given and what was expected."""

import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lrsa_lightning.command_line.config_files import ConfigFiles
from lrsa_lightning.command_line.input_boundary import refuse
from lrsa_lightning.command_line.near_keys import arguments_of, nearest_class, nearest_key
from lrsa_lightning.errors import InputError
from lrsa_lightning.files.yaml_text import check_yaml
from lrsa_lightning.library_errors import input_error, reading
from lrsa_lightning.parser_errors import Complaint, read_error

PARSER_MODE = "omegaconf+"
_MODES = "\n  Attention modes: LRSA, Vanilla, the class_path of your own; files: configs/attention/*.yaml"
_SUBCOMMAND = re.compile(r"Subcommand '(\w+)'")
_NOT_THERE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_CLASS = re.compile(r"there is no class (\w+)$")
_OF_LIGHTNING = {"trainer.callbacks", "trainer.logger"}
_QUOTED = re.compile(r"'([\w.]+)'")


def _load(text: str) -> Any:
    """Reads a value as jsonargparse does, but refuses repeated keys and endless aliases in braces.

    jsonargparse takes text that is not YAML as a plain string. `ConfigFiles` has checked the files before.
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
    """jsonargparse's parser with errors of one line that name the file of the key."""

    _files: ConfigFiles | None = None
    _subcommands: Any = None
    _linked: tuple[str, ...] = ()

    def add_subcommands(self, *args, **keys) -> Any:
        self._subcommands = super().add_subcommands(*args, **keys)
        return self._subcommands

    def link_arguments(self, source: str | tuple[str, ...], target: str, *args, **keys) -> None:
        """Links arguments. The target is then no option."""
        super().link_arguments(source, target, *args, **keys)
        self._linked = (*self._linked, target)

    def parse_args(self, args: Sequence[str] | None = None, *further, **keys):
        """Raises an InputError if a YAML file is malformed, or refers to something that does not exist."""
        if not hasattr(self, "parent_parser"):  # the command's parser has read a subcommand's arguments
            self._files = ConfigFiles(sys.argv[1:] if args is None else args)
        with reading("the command line and its configs"):
            try:
                parsed = super().parse_args(args, *further, **keys)
            except Exception as error:
                key = getattr(error, "full_key", None)  # OmegaConf's errors about ${...} have one
                if key is None:
                    raise
                self.error(f'Parser key "{key}": {str(error).splitlines()[0]}', error)
        if self._files is not None:
            self._check_names(parsed)
        return parsed

    def _check_names(self, parsed: Namespace) -> None:
        """Refuses an unknown key whose value is an empty mapping: jsonargparse does not look at its name."""
        known, parser = parsed, self
        if "subcommand" in parsed:
            known, parser = parsed[parsed.subcommand], self._subcommands.choices[parsed.subcommand]
        for key in self._files.outer_keys():
            of_any_name = isinstance(known.get(key.partition(".")[0]), dict)  # such as callbacks
            if key not in known and not of_any_name:
                parser.error(f"Key '{key}' is not accepted")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser tries several ways to read a value and compares the errors
            super().error(message, ex)
        if (mistake := input_error(ex)) is not None:
            refuse(str(mistake), ex)
        if "Config file loop detected" in message:
            message = _before_the_loop(message, ex)
        complaint = read_error(message)
        place = f" ({found})" if (found := self._place(complaint)) else ""
        modes = _MODES if "model.attention" in message else ""
        refuse(f"{complaint}{place}{self._way_out(complaint)}{modes}", ex)

    def _place(self, complaint: Complaint) -> str | None:
        """File and line of the key, if a file gave it."""
        files = getattr(self, "parent_parser", self)._files
        named = _QUOTED.findall(complaint.reason)
        inner = [*reversed(complaint.keys[1:]), *named]
        for key in complaint.keys[:1] or named:
            for name in (key, key.partition(".")[2]):  # the parser may put the subcommand before the key
                if files is not None and (place := files.place_of(name, *inner)):
                    return place
        return None

    def _way_out(self, complaint: Complaint) -> str:
        if near := self._nearest(complaint):
            return f": did you mean {near}?"
        if complaint.keys or not re.search("accept|unrecognized|subcommand", complaint.reason):
            return ""
        subcommand = _SUBCOMMAND.match(complaint.reason)
        words = [*self.prog.replace(" [options]", "").split(), *(subcommand.groups() if subcommand else ())]
        return f": see `{' '.join(words)} --help`"

    def _nearest(self, complaint: Complaint) -> str | None:
        """The key, option or argument of a class that an unknown one probably means."""
        if (found := _NOT_THERE.search(complaint.reason)) is not None:
            return nearest_class(found[2], found[1])
        if _OF_LIGHTNING & {*complaint.keys} and (found := _NO_CLASS.search(complaint.reason)) is not None:
            return nearest_class(found[1])
        if (unknown := complaint.unknown) is None:
            return None
        if complaint.class_path:
            return nearest_key(unknown, arguments_of(complaint.class_path))
        subcommand = _SUBCOMMAND.match(complaint.reason)
        parser = self._subcommands.choices[subcommand[1]] if subcommand else self
        near = nearest_key(unknown.removeprefix("--"), parser._options())
        return near and f"{'--' if unknown.startswith('--') else ''}{near}"

    def _options(self) -> list[str]:
        """The keys that can be given; those of a class without `init_args`, as on a command line."""
        keys = [key for key, _ in self.get_defaults().items() if "__" not in key and key not in self._linked]
        return [key.replace(".init_args.", ".") for key in keys]


def _before_the_loop(message: str, error: BaseException | None) -> str:
    """The error of a file that the parser then read a second time, and reported as a loop."""
    while error is not None and not str(error).startswith("Config file loop detected"):
        error = error.__cause__ or error.__context__
    reason = getattr(error, "__context__", None)
    return f"{message.partition(':')[0]}:\n{reason}" if isinstance(reason, ValueError) else message
