"""The YAML files that a command line names: checks them before the parser reads them, and knows where each key is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.yaml_text import check_yaml, read_mapping, read_text

_SUFFIXES = (".yaml", ".yml")
_PARTS = ("model", "data", "trainer")
_EXPECTED = {
    "config": "a configuration, as configs/experiment/*.yaml",
    "attention": "an attention mode, as configs/attention/*.yaml",
    "lora": "settings of LoRA, as configs/lora/*.yaml",
}


class ConfigFiles:
    """The keys that the files of a command line give, and their places.

    Raises:
        InputError: a file is missing, unreadable, empty, malformed or not a mapping, repeats a key, or names itself;
            says which file.
    """

    def __init__(self, arguments: Sequence[str]):
        self._places: dict[str, str] = {}
        for key, value in _options(arguments):
            if _kind(key) == "config":
                if _is_text(value):
                    check_yaml(value, f"--{key}")
                elif value:
                    self._read(Path(value), "", "config", f"--{key}", ())
            else:
                self._forget(key)
                self._follow(key, value, Path(), f"--{key}", ())

    def outer_keys(self) -> list[str]:
        """The dotted keys of one or two levels that the files give."""
        return [key for key in self._places if key.count(".") < 2]

    def place_of(self, key: str, *inner: str) -> str | None:
        """File and line of a key in the last file that gives it; None if the command line gave it.

        Args:
            key: dotted.
            *inner: names of keys below it; the first one found is the place.
        """
        below = {name.rpartition(".")[2]: name for name in self._places if name.startswith(f"{key}.")}
        found = next((below[name] for name in inner if name in below), key)
        return self._places.get(found)

    def _read(self, path: Path, prefix: str, kind: str, named_by: str, outer: tuple[Path, ...]) -> None:
        path = path.expanduser()
        _check_file(path, kind, named_by)
        if path.resolve() in outer:
            raise InputError(f"{path} ({named_by}) names itself: remove the name, files must not form a circle")
        content = read_mapping(path, _EXPECTED[kind])
        for key in _PARTS if kind == "config" and not prefix else ():
            if not isinstance(content.get(key, {}), dict | str):
                raise InputError(f"{path} ({named_by}): {key} holds no keys and values: expected {_EXPECTED[kind]}")
        for key, line in check_yaml(read_text(path), str(path)).items():
            self._places[prefix + key] = f"{path}, line {line}"
        for key, value in _strings(content):
            self._follow(prefix + key, value, path.parent, f"{path}: {key}", (*outer, path.resolve()))

    def _follow(self, key: str, value: str, folder: Path, named_by: str, outer: tuple[Path, ...]) -> None:
        """Reads the file that a value names, if the parser would read it too."""
        kind = None if _is_text(value) else _kind(key)
        names_yaml, path = value.endswith(_SUFFIXES), folder / value
        if kind in ("attention", "lora") and (names_yaml or "/" in value or path.is_file()):
            self._read(path, f"{key}.", kind, named_by, outer)
            self._places[key] = str(path)
        elif kind == "part" and names_yaml and path.is_file():
            self._read(path, f"{key}.", "config", named_by, outer)
        elif kind == "config" and path.is_file():
            self._read(path, "", kind, named_by, outer)

    def _forget(self, key: str) -> None:
        for name in [name for name in self._places if name == key or name.startswith(f"{key}.")]:
            del self._places[name]


def _is_text(value: str) -> bool:
    """Whether a value is YAML itself, not the name of a file."""
    return "\n" in value or value.lstrip().startswith(("{", "["))


def _check_file(path: Path, kind: str, named_by: str) -> None:
    try:
        fault = "is a folder" if path.is_dir() else None if path.exists() else "does not exist"
    except OSError as error:
        raise InputError(f"{path} ({named_by}) cannot be read ({error.strerror})") from error
    if fault:
        raise InputError(f"{path} ({named_by}) {fault}: expected {_EXPECTED[kind]}")


def _kind(key: str) -> str | None:
    """What the file under this key holds: `config`, `attention`, `lora` or `part` (of a config); None elsewhere."""
    name = key.rpartition(".")[2]
    if name in ("attention", "lora") or key == "config":
        return name
    return "part" if key in _PARTS else None


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Key and value of each option, spelled `--key value` or `--key=value`."""
    rest = iter([*arguments, ""])
    word = next(rest)
    for following in rest:
        if word.startswith("--"):
            key, is_joined, value = word[2:].partition("=")
            yield key.rstrip("+"), value if is_joined else following
        word = following


def _strings(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys inside mappings whose values are strings, and these."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _strings(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
