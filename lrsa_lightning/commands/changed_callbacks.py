"""Callbacks of a configuration's list, left out or changed by name."""

from argparse import ArgumentError
from pkgutil import resolve_name

from jsonargparse import ArgumentParser, Namespace

from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.parser_errors import read_error


def change_callbacks(config: Namespace) -> None:
    """Applies `callbacks` to `trainer.callbacks` and empties it: what is saved is the list as it runs.

    Args:
        config: the parsed configuration of `lrsa fit`; changed in place.

    Raises:
        InputError: a name means no callback of the list, or several; or a class does not take an argument or a value.
    """
    for name, changes in (config.callbacks or {}).items():
        entry = _named(name, config.trainer.callbacks or [])
        if changes is None:
            config.trainer.callbacks = [each for each in config.trainer.callbacks if each is not entry]
        else:
            _change(entry, name, changes)
    config.callbacks = {}


def _named(name: str, entries: list[Namespace]) -> Namespace:
    """The entry whose class has this name, or a name that begins with it; capitals and underscores do not count."""
    wanted = _plain(name)
    classes = [entry.class_path.rpartition(".")[2] for entry in entries]
    known = [*zip(map(_plain, classes), entries, strict=True)]
    exact = [entry for plain, entry in known if plain == wanted]
    found = exact or [entry for plain, entry in known if plain.startswith(wanted)]
    if len(found) != 1:
        means = "means several of" if found else "is none of"
        raise InputError(
            f"callbacks.{name} {means} the callbacks of trainer.callbacks: {', '.join(classes) or 'the list is empty'}"
            f"{suggestion(name, classes)}"
        )
    return found[0]


def _change(entry: Namespace, name: str, changes: dict) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(resolve_name(entry.class_path), fail_untyped=False)
    for argument, value in changes.items():
        if argument not in (known := parser.get_defaults()):
            raise InputError(f"callbacks.{name} takes no {argument}, but {', '.join(known.keys())}")
        try:
            entry.init_args[argument] = parser.parse_object({argument: value}, defaults=False)[argument]
        except ArgumentError as error:
            raise InputError(f"callbacks.{name}: {read_error(str(error))}") from None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
