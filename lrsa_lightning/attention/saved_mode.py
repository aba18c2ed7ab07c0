"""The attention mode in a model's config.json: a folder says by which rule its model was trained."""

from typing import Any

from lrsa_lightning.attention.base import AttentionMode
from lrsa_lightning.attention.lrsa import LRSA, SETTINGS, TRAINED_RATIOS
from lrsa_lightning.errors import InputError
from lrsa_lightning.saved_settings import KEY, save_settings, saved_settings


def save_mode(config, mode: AttentionMode | None) -> None:
    """Writes the settings of a mode into a transformers configuration; a mode without settings writes none."""
    save_settings(config, None if mode is None else mode.settings())


def saved_mode(config) -> LRSA | None:
    """The mode that a transformers configuration names; None where it names none.

    Raises:
        InputError: what it names is no rule.
    """
    settings: Any = saved_settings(config)
    if settings is None:
        return None
    expected = f"give it {', '.join(SETTINGS)}"
    if not isinstance(settings, dict) or not settings.keys() <= {*SETTINGS, TRAINED_RATIOS}:
        raise InputError(f"config.json: {KEY} is {settings!r}: {expected}")
    rule = {name: value for name, value in settings.items() if name != TRAINED_RATIOS}
    try:
        mode = LRSA(**rule)
        return mode.trained_for(settings[TRAINED_RATIOS]) if TRAINED_RATIOS in settings else mode
    except (InputError, TypeError) as error:
        raise InputError(f"config.json: {KEY}: {error}") from error


def serving(mode: AttentionMode | None, ratio: float) -> LRSA:
    """The mode with another one of the ratios that an elastic run trained its model for.

    Raises:
        InputError: the run trained with one ratio, or not with this one.
    """
    known = (mode.settings() or {}).get(TRAINED_RATIOS, []) if isinstance(mode, LRSA) else []
    if ratio not in known:
        trained = f"the run trained the ratios {', '.join(map(str, known))}" if known else "the run was not elastic"
        raise InputError(f"serving_ratio {ratio}: {trained}; give one of a list under retention_ratio, or leave it out")
    return LRSA(**{name: getattr(mode, name) for name in SETTINGS} | {"retention_ratio": ratio}).trained_for(known)
