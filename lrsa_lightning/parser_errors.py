"""Turns jsonargparse's errors, which list a message for each member of a union, into one line."""

import re
import textwrap
from dataclasses import dataclass, replace

from lrsa_lightning.ranges import range_of

_KEY = re.compile(r'(?:Parser key|argument) "?(?:--)?([\w.+-]+)"?(?: element \d+)?:[ \n]?(.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '([^']*)':[ \n]?(.*)", re.DOTALL)
UNION = "Does not validate against any of the Union subtypes"
_PATH = re.compile(r"- Expected a path but .* either not accessible or invalid\n- (.*)", re.DOTALL)
_RANGE = re.compile(r"Not of type (\w+): (?:(.*?) ?does not conform|.*?: '(.*)'$|(.*))")
_KIND = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?", re.DOTALL)
_NAME = re.compile(r"Expected a dot import path string: (.*)")
_UNKNOWN = re.compile(r"(?:Option|Key|option) '([\w.+-]+)'|[uU]nrecognized arguments: (--[\w.-]+)")
_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)(?:\. Got value: (.*?))?(?:\n|$)")
_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'str'>": "a text",
    "<class 'bool'>": "true or false",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list",
    "<class 'dict'>": "keys and values",
    "<class 'collections.abc.Iterable'>": "a list",
    "<class 'collections.abc.Sequence'>": "a list",
}


@dataclass(frozen=True)
class Complaint:
    """Why the parser refuses a value.

    Attributes:
        keys: dotted names and classes, from the outermost to the wrong one.
        value: as given, if the parser says it.
        kinds: what it could have been.
        reason: a message in place of value and kinds.
        class_path: of the innermost class among the keys.
    """

    keys: tuple[str, ...] = ()
    value: str = ""
    kinds: tuple[str, ...] = ()
    reason: str = ""
    class_path: str = ""

    def __str__(self) -> str:
        where = ": ".join([*self.keys[:1], ".".join(self.keys[1:])]).removesuffix(": ")
        if self.reason:
            return f"{where}: {self.reason}" if where else self.reason
        return f"{where} is {self.value}, but must be {' or '.join(dict.fromkeys(self.kinds))}"

    @property
    def unknown(self) -> str | None:
        """The key or option that the parser does not know, options with their dashes; None for other complaints."""
        found = _UNKNOWN.search(self.reason)
        return found and (found[1] or found[2])


def read_error(message: str) -> Complaint:
    """The complaint in a message of the parser."""
    text = textwrap.dedent(message).strip()
    if found := _KEY.fullmatch(text):
        return _within(found[1], found[2])
    if found := _CLASS.fullmatch(text):
        return _within(found[1].rpartition(".")[2], found[2], found[1])
    if found := _PATH.fullmatch(text):
        return read_error(found[1])
    if UNION in text.partition("\n")[0]:
        return _of_union(text)
    if found := _RANGE.match(text):
        value = next((given for given in found.groups()[1:] if given), "")
        return Complaint(value=value, kinds=(range_of(found[1]),))
    if found := _NAME.fullmatch(text):
        return Complaint(reason=f"there is no class {found[1]}")
    if found := _KIND.fullmatch(text):
        kind = found[1].removeprefix("typing.Literal")
        return Complaint(value=found[2] or "", kinds=(_KINDS.get(kind, f"one of {kind}" if kind[0] == "[" else kind),))
    if found := _SUBCLASS.match(text):
        return Complaint(value=found[2] or "", kinds=(f"the class_path of a {found[1]}, with its init_args",))
    return Complaint(reason=" ".join(text.split()))


def _within(key: str, text: str, class_path: str = "") -> Complaint:
    inner = read_error(text)
    return replace(inner, keys=(key, *inner.keys), class_path=inner.class_path or class_path)


def _of_union(text: str) -> Complaint:
    """The complaint of the member that got furthest; if none got further than its type, all expected types."""
    _, _, listed = text.partition("Errors:\n")
    listed, _, value = listed.rpartition("\nGiven value: ")
    listed = listed.rpartition("\nGiven value type: ")[0]
    found = [read_error(member) for member in re.split(r"^- ", textwrap.dedent(listed), flags=re.MULTILINE)[1:]]
    first = next((one for one in found if one.keys), None) or next((one for one in found if one.reason), None)
    first = first or next((one for one in found if _is_element(one.value, value)), None)
    return first or Complaint(value=value, kinds=tuple(kind for one in found for kind in one.kinds))


def _is_element(value: str, given: str) -> bool:
    """Whether a complaint is about an element of a list."""
    return given.startswith("[") and value not in ("", given) and value in given
