"""torchao's quantised optimizer states in checkpoints: plain tensors, which load where torchao is not installed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.serialization import get_safe_globals

_CLASS = "quantised_class"


def keep_plain(optimizer: Optimizer) -> None:
    """Makes an optimizer save its states as plain tensors and load such ones, by torch's hooks.

    torchao's tensors are subclasses. `torch.load(weights_only=True)` refuses them in a process without torchao, for
    example where a report reads the checkpoint.
    """
    optimizer.register_state_dict_post_hook(lambda _, state: _changed(state, _to_parts))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: _changed(state, _from_parts))


def _changed(state: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    of_parameters = {
        parameter: {name: change(value) for name, value in values.items()}
        for parameter, values in state["state"].items()
    }
    return {**state, "state": of_parameters}


def _to_parts(value: Any) -> Any:
    if not isinstance(value, Tensor) or not hasattr(value, "__tensor_flatten__"):
        return value
    names, settings = value.__tensor_flatten__()
    return {
        _CLASS: type(value).__name__,
        "parts": {name: getattr(value, name) for name in names},
        "settings": list(settings),
    }


def _from_parts(value: Any) -> Any:
    if not isinstance(value, dict) or _CLASS not in value:
        return value
    # Those that torchao has registered at its import: a checkpoint can name no other class.
    registered = {kind.__name__: kind for kind in get_safe_globals() if isinstance(kind, type)}
    return registered[value[_CLASS]].__tensor_unflatten__(value["parts"], value["settings"])
