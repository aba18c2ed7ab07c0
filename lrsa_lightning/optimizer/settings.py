"""The optimizer of a run: its name and arguments."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lrsa_lightning.errors import InputError, suggestion
from lrsa_lightning.optimizer.names import OptimizerName
from lrsa_lightning.optimizer.quantised_states import keep_plain

# Arguments that other keys decide.
_SET_ELSEWHERE = {
    "params": "the model",
    "lr": "model.lr",
    "betas": "model.betas",
    "weight_decay": "model.weight_decay",
    "fused": "the device",
}
_OURS = (0.9, 0.95)  # the default of model.betas


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, beside the learning rate, betas and weight decay of `model`.

    Attributes:
        name: an optimizer of torch.optim (adamw, sgd, adafactor, ...), bitsandbytes (adamw8bit, paged_adamw8bit,
            lion8bit, ...) or torchao (torchao.adamw8bit, adamw4bit, adamwfp8).
        args: its further arguments, for example {eps: 1e-7}.
    """

    name: str = "adamw"
    args: dict[str, Any] | None = None

    @property
    def found(self) -> OptimizerName:
        """Library and class.

        Raises:
            InputError: no library has the name.
        """
        return OptimizerName.of(self.name)

    def check(self, betas: tuple[float, float] = _OURS) -> None:
        """Finds the class and tries the arguments on a small weight.

        Raises:
            InputError: the library is missing, or the class refuses an argument.
        """
        kind, given = self.found.find(), self.args or {}
        known = inspect.signature(kind).parameters
        for name in given:
            if name in _SET_ELSEWHERE and not (name == "betas" and not _has_two_betas(known)):
                raise InputError(f"model.optimizer.args has {name}: leave it out, {_SET_ELSEWHERE[name]} says it")
            if name not in known:
                hint = suggestion(name, known)
                raise InputError(f"model.optimizer.args: {name} is no argument of {kind.__name__}{hint}")
        if betas != _OURS and not _has_two_betas(known):
            raise InputError(f"model.betas {betas}: {kind.__name__} has no two betas, so leave them out")
        try:
            self.make([Parameter(torch.zeros(2, 2))], 1e-3, betas, 0.0, fused=False)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(f"model.optimizer: {kind.__name__} refuses its arguments {given}: {error}") from error

    def make(
        self, parameters: Iterable[Parameter], lr: float, betas: tuple[float, float], weight_decay: float, fused: bool
    ) -> Optimizer:
        """The optimizer over the parameters that are trained, with weight decay on matrices alone.

        Args:
            parameters: of the model.
            lr: peak learning rate.
            betas: for optimizers that have two.
            weight_decay: of matrices.
            fused: take one kernel for all weights, where the optimizer has one.
        """
        kind = self.found.find()
        known = inspect.signature(kind).parameters
        settings: dict[str, Any] = {"lr": lr, **(self.args or {})}
        if _has_two_betas(known):
            settings["betas"] = betas
        if "fused" in known:
            settings["fused"] = fused
        optimizer = kind(_groups(parameters, weight_decay), **settings)
        if self.found.library == "torchao":
            keep_plain(optimizer)
        return optimizer


def _groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    # ZeRO-3 cuts a parameter into flat parts and remembers its shape.
    ndims = [len(getattr(p, "ds_shape", p.shape)) for p in trained]
    matrices = [p for p, ndim in zip(trained, ndims, strict=True) if ndim >= 2]
    vectors = [p for p, ndim in zip(trained, ndims, strict=True) if ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # DeepSpeed takes no empty one, and LoRA has no vectors


def _has_two_betas(known: Any) -> bool:
    return "betas" in known and len(known["betas"].default) == 2
