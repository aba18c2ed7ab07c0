"""What of a layer's forward is kept for its backward, and what is computed again.

Keeping less saves memory and costs time. Policies, from the fastest to the smallest:

- none: autograd keeps all that it needs.
- selective: the results of matrix products and of the attention are kept. The outputs of norms and the product within
  SwiGLU are computed again: they are cheap, and a third of a layer's bytes.
- attention: selective, and the MLP is computed again. The attention's results are kept.
- full: each layer's input alone is kept (activation checkpointing).
- offload: full, and the layers' inputs wait in the host's memory.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lrsa_lightning.errors import InputError
from lrsa_lightning.recompute.offload import HostMemory

log = logging.getLogger(__name__)
Policy: TypeAlias = Literal["none", "selective", "attention", "full", "offload"]


def recompute_of(recompute: str, gradient_checkpointing: bool | None) -> str:
    """The setting `model.recompute`, also from its earlier name.

    Raises:
        InputError: both are given, and differ.
    """
    if gradient_checkpointing is None:
        return recompute
    earlier = "full" if gradient_checkpointing else "none"
    if recompute not in ("auto", earlier):
        raise InputError(f"model.recompute is {recompute}: leave out its earlier name, model.gradient_checkpointing")
    log.warning("model.gradient_checkpointing is now model.recompute: it is read as %s", earlier)
    return earlier


def set_policies(layers: Sequence[nn.Module], policies: Sequence[Policy]) -> None:
    """Sets the policy of each decoder layer, in place. A second call replaces the policies of the first.

    Args:
        layers: of the decoder, in order. They take the hidden states as their only positional argument.
        policies: one for each layer.
    """
    host = HostMemory()
    for layer, policy in zip(layers, policies, strict=True):
        forward = _without_policy(layer)
        if policy in ("selective", "attention"):
            layer.forward = _Selective(forward)
        elif policy == "full":
            layer.forward = _Again(forward)
        elif policy == "offload":
            layer.forward = _Offload(forward, host)
        if (mlp := getattr(layer, "mlp", None)) is not None:
            inner = _without_policy(mlp)
            mlp.forward = _Again(inner) if policy == "attention" else inner


def _without_policy(module: nn.Module) -> Callable:
    if isinstance(module.forward, _Selective | _Again | _Offload):
        module.forward = module.forward.inner
    return module.forward


class _Again:
    """A function whose intermediate results are computed again in the backward."""

    def __init__(self, inner: Callable):
        self.inner = inner

    def __call__(self, *args, **kwargs) -> Any:
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        return checkpoint(self._without_tape, *args, use_reentrant=False, **kwargs)

    def _without_tape(self, *args, **kwargs) -> Any:
        """Saves the same in the forward, within a layer's tape, and in the backward, without one."""
        tape, _Tape.current = _Tape.current, None
        try:
            return self.inner(*args, **kwargs)
        finally:
            _Tape.current = tape


class _Offload:
    """`_Again`, with its input in the host's memory."""

    def __init__(self, inner: Callable, host: HostMemory):
        self.inner, self._again, self._host = inner, _Again(inner), host

    def __call__(self, hidden_states: Tensor, **kwargs) -> Any:
        with self._host.holding(hidden_states):
            return self._again(hidden_states, **kwargs)


class _Selective:
    """A layer whose cheap results are computed again in the backward."""

    def __init__(self, inner: Callable):
        self.inner = inner

    def __call__(self, *args, **kwargs) -> Any:
        with _Tape() if torch.is_grad_enabled() else nullcontext():
            return self.inner(*args, **kwargs)


class _Recipe:
    """How a tensor is computed again. All operations that need it in the backward share one result."""

    def __init__(self, compute: Callable[[], Tensor], result: Tensor):
        self._compute, self._original, self._result = compute, ref(result), None

    def makes(self, saved: Tensor) -> bool:
        """Whether a tensor to be saved has the elements of this recipe's result, perhaps in another shape."""
        original = self._original()  # None once it is freed: another tensor may be at its address
        same = original is not None and original.data_ptr() == saved.data_ptr() and original.numel() == saved.numel()
        return same and original.dtype == saved.dtype and saved.is_contiguous()

    def result(self) -> Tensor:
        if self._result is None:
            with torch.no_grad():
                self._result = self._compute()
        return self._result


class _Tape:
    """Within it, autograd saves the recipes of cheap results instead of the results."""

    current: "_Tape | None" = None

    def __init__(self):
        self._recipes: list[_Recipe] = []
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._stack.enter_context(saved_tensors_hooks(self._pack, _unpack))
        _Tape.current = self

    def __exit__(self, *error) -> None:
        _Tape.current = None
        self._stack.close()
        self._recipes.clear()

    def add(self, recipe: _Recipe) -> None:
        self._recipes.append(recipe)

    def _pack(self, saved: Tensor) -> Tensor | tuple[_Recipe, torch.Size]:
        for recipe in self._recipes:
            if recipe.makes(saved):
                return recipe, saved.shape
        return saved


def _unpack(packed: Tensor | tuple[_Recipe, torch.Size]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    recipe, shape = packed
    return recipe.result().view(shape)


def cheap(function: Callable[..., Tensor], *args: Tensor, saves_inputs_only: bool, **settings) -> Tensor:
    """Calls a function whose result is cheap to compute again: within a layer under selective it is not kept.

    Args:
        function: of tensors and settings.
        *args: its tensors.
        saves_inputs_only: whether the function's own backward needs its inputs alone. Others run again in the backward.
        **settings: of the function.
    """
    if _Tape.current is None or saves_inputs_only:
        result = function(*args, **settings)
    else:
        result = checkpoint(function, *args, use_reentrant=False, **settings)
    remember(result, function, *args, **settings)
    return result


def remember(result: Tensor, function: Callable[..., Tensor], *args: Tensor, **settings) -> None:
    """Says how a result is computed again. Within a layer under selective, autograd then keeps the arguments instead.

    Args:
        result: any that operations after this one may save.
        function: computes it.
        *args: its tensors. Vectors are copied, because a strategy that shards weights frees them after the forward.
        **settings: of the function.
    """
    if _Tape.current is not None:
        kept = [arg.detach().clone() if arg.ndim == 1 else arg.detach() for arg in args]
        _Tape.current.add(_Recipe(partial(function, *kept, **settings), result))
