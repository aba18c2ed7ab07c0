"""The attention mode in a model's config.json: a folder says by which rule its model was trained."""

from typing import Any

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.lrsa import LRSA
from lrsa_lightning.errors import InputError

_KEY = "lrsa"
# What decides which tokens are kept; how it is computed is for the machine that runs the model.
_SETTINGS = ("lag_size", "retention_ratio", "sink_size", "v_weight", "skip_layers", "scorer", "seed")


def save_mode(config, mode: AttentionMode | None) -> None:
    """Writes the settings of an `LRSA` into a transformers configuration, under ``lrsa``; other modes write none."""
    vars(config).pop(_KEY, None)
    if type(mode) is LRSA:
        settings = {name: getattr(mode, name) for name in _SETTINGS}
        setattr(config, _KEY, settings | {"skip_layers": list(mode.skip_layers)})


def saved_mode(config) -> LRSA | None:
    """The mode that a transformers configuration names; None where it names none.

    Raises:
        InputError: what it names is no rule.
    """
    settings: Any = getattr(config, _KEY, None)
    if settings is None:
        return None
    expected = f"give it {', '.join(_SETTINGS)}"
    if not isinstance(settings, dict) or not settings.keys() <= {*_SETTINGS}:
        raise InputError(f"config.json: {_KEY} is {settings!r}: {expected}")
    try:
        return LRSA(**settings)
    except (InputError, TypeError) as error:
        raise InputError(f"config.json: {_KEY}: {error}") from error
