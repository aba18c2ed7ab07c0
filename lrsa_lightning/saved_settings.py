"""Settings of an attention mode in a transformers configuration, whose config.json keeps them.

They are plain values under one key. `attention.saved_mode` makes the mode of them. A config.json with settings names
its architectures with a mark: an engine that would not follow the settings then refuses the folder.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

log = logging.getLogger(__name__)
KEY = "lrsa"
MARK = "Lrsa"
# The template that a model was trained under, in its config.json: it is asked under the same one.
TEMPLATE = "lrsa_template"


def saved_settings(config) -> Any:
    """What the configuration of a model, or of its text decoder, names; None where it names nothing."""
    own = getattr(config, KEY, None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), KEY, None)


def save_settings(config, settings: dict[str, Any] | None) -> None:
    """Writes settings into the configuration of the text decoder in place of what was there; None writes nothing."""
    text = config.get_text_config(decoder=True)
    for part in (config, text):
        vars(part).pop(KEY, None)
    if settings is not None:
        setattr(text, KEY, settings)


@contextmanager
def marked(config) -> Iterator[None]:
    """Gives the architectures of a configuration the mark if it names settings, for a `with` block; none otherwise.

    transformers finds a model's class by ``model_type``, and does not miss an architecture that it does not know. TRL
    then reads ``auto_map``, which must be there.
    """
    earlier, has_map = config.architectures, hasattr(config, "auto_map")
    mark = MARK if saved_settings(config) is not None else ""
    if earlier is not None:
        config.architectures = [mark + name.removeprefix(MARK) for name in earlier]
    if mark and not has_map:
        config.auto_map = {}
    try:
        yield
    finally:
        config.architectures = earlier
        if mark and not has_map:
            del config.auto_map


@contextmanager
def set_aside(config) -> Iterator[None]:
    """Takes the settings out of a configuration for a `with` block: what is loaded in it, its caller installs."""
    settings = saved_settings(config)
    save_settings(config, None)
    try:
        yield
    finally:
        save_settings(config, settings)


def say_other(config, attention: str) -> None:
    """Says in the log, once for each, that a model runs another attention than its configuration names.

    Args:
        config: the model's; names a mode.
        attention: what it runs, as text.
    """
    _say(f"{config.name_or_path or 'this model'}: its config.json names {KEY} {saved_settings(config)}", attention)


@cache
def _say(named: str, attention: str) -> None:
    log.warning(
        "%s, but it runs %s: it was trained with another attention. attn_implementation='lrsa' runs the named one",
        named,
        attention,
    )
