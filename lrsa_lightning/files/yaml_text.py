"""Strict YAML, as every part of the package reads it: no key twice, no aliases that expand without limit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lrsa_lightning.errors import InputError

# libyaml's loader is several times as fast; PyYAML may be built without it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_VALUES = 100_000
_MOST_LEVELS = 100


def read_mapping(path: Path, expected: str) -> dict[str, Any]:
    """The keys and values of a file.

    Raises:
        InputError: the file cannot be read, is not a mapping, or `load_yaml` refuses it; says what was expected.
    """
    try:
        content = load_yaml(read_text(path), str(path))
    except InputError as error:
        raise InputError(f"{error}; expected {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} {'is empty' if content is None else 'holds no keys and values'}: expected {expected}")
    return content


def read_text(path: Path) -> str:
    """A YAML file as text, without its byte order mark; raises an InputError if it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise InputError(f"{path} is not UTF-8 text ({reason}): save it as UTF-8") from error


def load_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text; tags that could make anything else are refused.

    Raises:
        InputError: the text is malformed, or `check_yaml` refuses it; names ``where`` the text is from.
    """
    check_yaml(text, where)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError, TypeError: malformed dates and numbers
        raise InputError(f"{where}{_described(error, text)}") from error


def check_yaml(text: str, where: str) -> dict[str, int]:
    """Refuses what YAML readers silently accept or cannot handle.

    Returns:
        The line of each dotted key, without the keys inside lists.

    Raises:
        InputError: the text is malformed, repeats a key (`a.b` also repeats `b` inside `a`), is nested too deeply, or
            its aliases expand to too many values.
    """
    lines: dict[str, int] = {}
    try:
        walk = _Walk(yaml.parse(text, Loader=_Loader), where)
        for event in walk.events:
            if isinstance(event, yaml.NodeEvent):
                lines = {}  # load_yaml refuses a second document
                walk.take(event, "", lines, ())
    except yaml.YAMLError as error:
        raise InputError(f"{where}{_described(error, text)}") from error
    return lines


def _described(error: Exception, text: str) -> str:
    """What PyYAML says and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ": " + " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
    is_tab = "".join(text.splitlines()[mark.line : mark.line + 1])[mark.column : mark.column + 1] == "\t"
    problem = "a tab, but YAML accepts only spaces here" if is_tab else error.problem
    begun = getattr(error, "context_mark", None)
    within = f" (inside what begins in line {begun.line + 1})" if begun is not None and begun.line < mark.line else ""
    return f": line {mark.line + 1}, column {mark.column + 1}: {problem}{within}"


class _Walk:
    """Follows the events of a YAML text without building its values."""

    def __init__(self, events: Iterator[yaml.Event], where: str):
        self.events = events
        self._where = where
        self._sizes: dict[str, int] = {}  # values of each anchor, once its collection has ended
        self._expanded = 0

    def take(self, event: yaml.NodeEvent, prefix: str, lines: dict[str, int], outer: tuple[str | None, ...]) -> int:
        """Follows one value from its first event to its end, and counts the values in it, aliases expanded.

        It adds the lines of the dotted keys inside the value; `outer` are the anchors of the collections around it.
        """
        if isinstance(event, yaml.AliasEvent):
            return self._expand(event, outer)
        size = 1
        if isinstance(event, yaml.CollectionStartEvent):
            if len(outer) == _MOST_LEVELS:
                raise self._error(event, f"nested more than {_MOST_LEVELS} levels deep")
            outer = (*outer, event.anchor)
            if isinstance(event, yaml.MappingStartEvent):
                size += self._take_pairs(prefix, lines, outer)
            else:
                size += sum(self.take(item, "", {}, outer) for item in self._until_end())
        if event.anchor is not None:
            self._sizes[event.anchor] = size
        return size

    def _take_pairs(self, prefix: str, lines: dict[str, int], outer: tuple[str | None, ...]) -> int:
        size = 0
        for key in self._until_end():
            name = ""
            if isinstance(key, yaml.ScalarEvent):
                name = prefix + key.value
                if name in lines:
                    raise self._error(key, f"key {key.value} was given in line {lines[name]} already: keep one")
                lines[name] = _line(key)
            size += self.take(key, "", {}, outer) + self.take(next(self.events), f"{name}.", lines, outer)
        return size

    def _until_end(self) -> Iterator[yaml.Event]:
        """The first events of the values of a collection."""
        while not isinstance(event := next(self.events), yaml.CollectionEndEvent):
            yield event

    def _expand(self, event: yaml.AliasEvent, outer: tuple[str | None, ...]) -> int:
        if event.anchor in outer:
            raise self._error(event, f"*{event.anchor} stands within &{event.anchor} itself")
        size = self._sizes.get(event.anchor, 1)
        self._expanded += size
        if self._expanded > _MOST_VALUES:
            message = f"*{event.anchor} and the aliases before it stand for more than {_MOST_VALUES} values"
            raise self._error(event, f"{message}: write out what is meant")
        return size

    def _error(self, event: yaml.Event, message: str) -> InputError:
        return InputError(f"{self._where}, line {_line(event)}: {message}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1
