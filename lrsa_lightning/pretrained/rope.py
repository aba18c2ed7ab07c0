"""Checks the parameters of RoPE: unknown keys, missing keys, wrong ranges and contradictions.

transformers ignores a misspelt key, and at most logs it.
"""

from difflib import get_close_matches
from math import isfinite
from typing import Any

from lrsa_lightning.errors import InputError

# The keys of every rope_type.
_ANY_TYPE = {"rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}


_ORIGINAL = "original_max_position_embeddings"
_YARN = {_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
# The keys that each rope_type needs, and those that it may have.
_SCALINGS = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, {_ORIGINAL, "alpha"}),
    "yarn": ({"factor"}, _YARN),
    "longrope": ({"short_factor", "long_factor"}, {_ORIGINAL, "factor", "attention_factor"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {_ORIGINAL}),
}
_KNOWN = _ANY_TYPE.union(*(needed | possible for needed, possible in _SCALINGS.values()))
_AT_LEAST_ONE = {"factor", _ORIGINAL}
_POSITIVE = {
    *("rope_theta", "partial_rotary_factor", "attention_factor"),
    *("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"),
}


def check_rope(rope: dict[str, Any], where: str, more_keys: set[str] = frozenset(), strict: bool = True) -> None:
    """Checks the parameters of one RoPE.

    Args:
        rope: the parameters, as in a configuration.
        where: what the user calls them.
        more_keys: further keys that this model has.
        strict: refuse every unknown key, not only one that resembles a known key.

    Raises:
        InputError: names the key that is unknown, missing, out of range or meaningless for this rope_type.
    """
    rope = {key: value for key, value in rope.items() if value is not None}
    for key in rope.keys() - _KNOWN - more_keys - {"type"}:
        near = get_close_matches(key, _KNOWN, n=1, cutoff=0.75)
        if strict or near:
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_KNOWN))}"
            raise InputError(f"{where}: unknown key {key!r}: {hint}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) not in (kind, "mrope"):
        raise InputError(f"{where}: rope_type {kind!r} and type {rope['type']!r} contradict each other: leave type out")
    _check_type(rope, kind, where, strict)
    for key, value in rope.items():
        _check_range(key, value, where)


def _check_type(rope: dict[str, Any], kind: str, where: str, strict: bool) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind not in _SCALINGS:
        of_few_models = kind in ROPE_INIT_FUNCTIONS or kind == "mrope"
        if of_few_models or not (strict or get_close_matches(str(kind), _SCALINGS, n=1)):
            return  # those models check their own
        raise InputError(f"{where}: unknown rope_type {kind!r}: there are {', '.join(_SCALINGS)}")
    needed, possible = _SCALINGS[kind]
    if missing := sorted(needed - rope.keys()):
        raise InputError(f"{where}: rope_type {kind!r} needs {', '.join(missing)}")
    of_others = _KNOWN - _ANY_TYPE - needed - possible
    if strict and (useless := sorted(rope.keys() & of_others)):
        raise InputError(
            f"{where}: {', '.join(useless)} means nothing for rope_type {kind!r}: set rope_type, or leave it out"
        )


def _check_range(key: str, value: Any, where: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if key in _AT_LEAST_ONE and not (is_number and value >= 1):
        raise InputError(f"{where}: {key} is {value!r}, but must be a number of at least 1")
    if key in _POSITIVE and not (is_number and value > 0):
        raise InputError(f"{where}: {key} is {value!r}, but must be a number above 0")


def check_config_rope(config, where: str) -> None:
    """Runs `check_rope` on a model's configuration, in which unknown keys may have a meaning."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    of_kinds = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    for kind, part in of_kinds.items() or [("", rope)]:
        check_rope(part, f"{where}: rope_parameters{kind and f' of {kind}'}", strict=False)


def check_given(keys: dict[str, Any], where: str, more_keys: set[str]) -> None:
    """Checks the RoPE parameters in configuration keys: rope_parameters, rope_scaling and single keys must agree.

    Raises:
        InputError: as `check_rope`, or two places contradict each other.
    """
    places = {name: keys[name] for name in ("rope_parameters", "rope_scaling") if keys.get(name)}
    if len(places) == 2 and places["rope_parameters"] != places["rope_scaling"]:
        raise InputError(f"{where}: rope_parameters and rope_scaling contradict each other: give rope_parameters alone")
    for name, rope in places.items():
        if not isinstance(rope, dict):
            raise InputError(f"{where}.{name} is {rope!r}, but must hold keys such as rope_type and factor")
        for part in [part for part in rope.values() if isinstance(part, dict)] or [rope]:
            for key in ("rope_theta", "partial_rotary_factor"):
                if None not in (inner := part.get(key), outer := keys.get(key)) and inner != outer:
                    raise InputError(f"{where}: {key} is {outer}, but {inner} in {name}: give it once")
            check_rope(part, f"{where}.{name}", more_keys)
    for key in ("rope_theta", "partial_rotary_factor"):
        if keys.get(key) is not None:
            _check_range(key, keys[key], where)


def override(config, given: dict[str, Any], where: str = "model.rope_parameters") -> None:
    """Overrides a configuration's RoPE parameters; a new rope_type drops those of the old one.

    Raises:
        InputError: as `check_rope`, or the model has no RoPE, or a RoPE for each kind of layer.
    """
    text = config.get_text_config(decoder=True)
    own = getattr(text, "rope_parameters", None)
    if not own or any(isinstance(part, dict) for part in own.values()):
        reason = "has RoPE parameters for each kind of layer" if own else "has no RoPE"
        raise InputError(f"{where}: {config.model_type!r} {reason}, which these cannot replace: leave them out")
    if "type" in given and "rope_type" not in given:
        given = {"rope_type" if key == "type" else key: value for key, value in given.items()}
    if given.get("rope_type", own.get("rope_type")) != own.get("rope_type"):
        own = {key: value for key, value in own.items() if key in _ANY_TYPE}
    rope = {**own, **given}
    check_rope(rope, where, set(own))
    if rope.get("rope_type") in ("yarn", "llama3", "longrope"):
        rope.setdefault(_ORIGINAL, text.max_position_embeddings)
    text.rope_parameters = rope
