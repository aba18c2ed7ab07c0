"""YAML as every part of the package reads it: a key given twice, or aliases that unfold without end, are refused."""

from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.errors import InputError

# libyaml's, several times as fast, where PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_NODES = 100_000
_MOST_LEVELS = 100


def read_mapping(path: Path, expected: str) -> dict[str, Any]:
    """The keys and values of a file.

    Args:
        path: of the file.
        expected: what it should be, for the error.

    Raises:
        InputError: it cannot be read, holds anything else, or is refused by `load_yaml`; names the file.
    """
    try:
        content = load_yaml(read_text(path), str(path))
    except InputError as error:
        raise InputError(f"{error}; expected {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} {'is empty' if content is None else 'holds no keys and values'}: expected {expected}")
    return content


def read_text(path: Path) -> str:
    """A YAML file as text; a byte order mark is no part of it.

    Raises:
        InputError: it cannot be read, or is not UTF-8; names the file.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def load_yaml(text: str, where: str) -> Any:
    """The content of a text; without a tag that could make anything but plain values.

    Args:
        text: YAML.
        where: what the user calls it, for the error.

    Raises:
        InputError: it is malformed, or `check_yaml` refuses it.
    """
    check_yaml(text, where)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the latter two of malformed dates and numbers
        raise InputError(f"{where}{_described(error, text)}") from error


def check_yaml(text: str, where: str) -> dict[str, int]:
    """Refuses what YAML's readers take without a word, or choke on.

    Args:
        text: YAML.
        where: what the user calls it, for the error.

    Returns:
        The line of each key, dotted; without those within lists.

    Raises:
        InputError: it is malformed, a key is given twice (also as `a.b` and within `a`), it is nested too deeply, or
            its aliases unfold to too many values.
    """
    walk = _Walk(where)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            walk.take(event)
    except yaml.YAMLError as error:
        raise InputError(f"{where}{_described(error, text)}") from error
    return walk.lines


def _described(error: Exception, text: str) -> str:
    """The place, if PyYAML names one, and what it says, in a line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ": " + " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
    is_tab = "".join(text.splitlines()[mark.line : mark.line + 1])[mark.column : mark.column + 1] == "\t"
    problem = "a tab, where YAML takes spaces alone" if is_tab else error.problem
    begun = getattr(error, "context_mark", None)
    within = f" (in what begins in line {begun.line + 1})" if begun is not None and begun.line < mark.line else ""
    return f": line {mark.line + 1}, column {mark.column + 1}: {problem}{within}"


class _Walk:
    """Follows the events of a YAML text, without building its values."""

    def __init__(self, where: str):
        self._where = where
        self._open: list[_Collection] = []
        self._sizes: dict[str, int] = {}
        self._unfolded = 0
        self.lines: dict[str, int] = {}

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionEndEvent):
            done = self._open.pop()
            self._count(done.size, done.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._enter(event)
        elif isinstance(event, yaml.ScalarEvent):
            self._name(event)
            self._count(1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._unfold(event)

    def _enter(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._open) == _MOST_LEVELS:
            raise InputError(f"{self._where}, line {_line(event)}: nested more than {_MOST_LEVELS} levels deep")
        inner = _Collection(isinstance(event, yaml.MappingStartEvent), event.anchor)
        if self._open:
            self._open[-1].put_inside(inner)
        else:
            self.lines = inner.lines
        self._open.append(inner)

    def _name(self, event: yaml.ScalarEvent) -> None:
        line = self._open[-1].name(event.value, _line(event)) if self._open else None
        if line is not None:
            raise InputError(
                f"{self._where}, line {_line(event)}: key {event.value} was given in line {line} already: keep one"
            )

    def _unfold(self, event: yaml.AliasEvent) -> None:
        if any(outer.anchor == event.anchor for outer in self._open):
            raise InputError(
                f"{self._where}, line {_line(event)}: *{event.anchor} stands within &{event.anchor} itself"
            )
        size = self._sizes.get(event.anchor, 1)
        self._unfolded += size
        if self._unfolded > _MOST_NODES:
            raise InputError(
                f"{self._where}, line {_line(event)}: *{event.anchor} and the aliases before it stand for more than "
                f"{_MOST_NODES} values: write out what is meant"
            )
        if self._open:
            self._open[-1].step()
        self._count(size, None)

    def _count(self, size: int, anchor: str | None) -> None:
        if self._open:
            self._open[-1].size += size
        if anchor is not None:
            self._sizes[anchor] = size


class _Collection:
    """A mapping or list that the walk is within. Mappings within one another share the dotted keys they have seen."""

    def __init__(self, is_mapping: bool, anchor: str | None):
        self.anchor = anchor
        self.size = 1
        self._is_mapping = is_mapping
        self._expects_key = is_mapping
        self._key = ""
        self._prefix = ""
        self.lines: dict[str, int] = {}

    def step(self) -> None:
        """From a key to its value and back."""
        self._expects_key = self._is_mapping and not self._expects_key

    def name(self, text: str, line: int) -> int | None:
        """Takes a scalar; the line in which it was a key before, if it is one and was."""
        is_key = self._expects_key
        self.step()
        if not is_key:
            return None
        self._key = self._prefix + text
        earlier = self.lines.get(self._key)
        self.lines[self._key] = line
        return earlier

    def put_inside(self, inner: "_Collection") -> None:
        """Takes a collection as the value of the last key."""
        if self._is_mapping and not self._expects_key:
            inner._prefix, inner.lines = f"{self._key}.", self.lines
        self.step()


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1
