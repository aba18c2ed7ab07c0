"""Which key of a configuration a misspelt one means."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from importlib import import_module
from pkgutil import resolve_name

from jsonargparse import ArgumentParser

_CLASSES = ("lrsa_lightning.callbacks", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
_OF_A_CLASS = ("class_path", "init_args")


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key with the same name in another group, else the one that resembles the given key.

    Args:
        key: dotted, not known.
        known: dotted keys.

    Returns:
        A known key, or one below it; None if nothing resembles the given key.
    """
    paths = [path for one in known for path in _with_groups(one.split("."))]
    parts = key.split(".")
    same = next((path for path in paths if path[-1] == parts[-1]), None)
    found = same or _along(parts, paths) or _by_name(parts[-1], paths)
    return ".".join(found) if found else None


def arguments_of(class_path: str) -> list[str]:
    """The arguments that a class takes, its parents' included, and the keys that name a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(resolve_name(class_path), fail_untyped=False)
    return [*parser.get_defaults().keys(), *_OF_A_CLASS]


def nearest_class(name: str, module: str = "") -> str | None:
    """The class that a misspelt name means: of a module, or else a callback or logger of ours or of Lightning."""
    places = [module] if module else _CLASSES
    known = [word for place in places for word in vars(import_module(place))]
    near = get_close_matches(name, known, n=1)
    return near[0] if near else None


def _with_groups(path: list[str]) -> list[list[str]]:
    return [path[:end] for end in range(1, len(path) + 1)]


def _along(parts: list[str], paths: Collection[list[str]]) -> list[str] | None:
    """The known path that resembles each part; what follows a path without groups stays as it is."""
    found: list[str] = []
    for depth, part in enumerate(parts):
        level = [path[depth] for path in paths if path[:depth] == found and len(path) > depth]
        if not level:
            return found + parts[depth:]
        near = get_close_matches(part, level, n=1)
        if not near:
            return None
        found += near
    return found


def _by_name(name: str, paths: Collection[list[str]]) -> list[str] | None:
    near = get_close_matches(name, [path[-1] for path in paths], n=1)
    return next(path for path in paths if path[-1] == near[0]) if near else None
