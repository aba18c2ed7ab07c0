"""The precision `bf16-master`: computes in bfloat16, keeps master weights and the optimizer's states in float32.

An update of a small learning rate is smaller than bfloat16's spacing: precision bf16-true loses it. Autocast
(bf16-mixed) keeps it, but casts the weights at each use and leaves the residual stream in float32.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

NAME = "bf16-master"


class MasterPrecision(Precision):
    """Marks a run whose parameters are float32 masters. The strategy computes in bfloat16: FSDP2 does by itself."""

    precision = NAME


class MasterWeights(MasterPrecision):
    """`bf16-master` on one device.

    The module's parameters are the masters, so optimizer, clipping, checkpoints and exports see float32 alone. During
    forward and backward bfloat16 copies take their place. Each gradient of a copy is added to its master's at once:
    gradient accumulation adds in float32.
    """

    def __init__(self):
        self._places: list[tuple[nn.Module, str, Parameter]] = []
        self._copies: dict[Parameter, Parameter] = {}
        self._versions: list[int] | None = None  # of the masters that the copies equal
        self._depth = 0

    def connect(self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]):
        """Finds the parameters, now that they are on the device. A tied parameter has one copy."""
        self._places = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dtype == torch.float32
        ]
        self._copies, self._versions = {}, None
        return super().connect(model, optimizers, lr_schedulers)

    @property
    def bytes_of_copies(self) -> int:
        """What the first forward adds on the device."""
        return 0 if self._copies else sum(2 * master.numel() for master in self._masters())

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Within it the model's parameters are the bfloat16 copies."""
        if self._depth == 0:
            self._refresh()
            for module, name, master in self._places:
                setattr(module, name, self._copies[master])
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for place in self._places:
                    setattr(*place)

    def backward(self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        with self.forward_context():  # recomputation runs layers again
            super().backward(tensor, model, optimizer, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(*args, **kwargs)
        self._versions = None  # fused optimizers do not count a version up
        return result

    def _masters(self) -> list[Parameter]:
        return [*dict.fromkeys(master for _, _, master in self._places)]

    @torch.no_grad()
    def _refresh(self) -> None:
        """Makes the copies equal to the masters, if a master has changed since the last time."""
        masters = self._masters()
        versions = [master._version for master in masters]
        if versions == self._versions:
            return
        for master in masters:
            if master not in self._copies:
                self._copies[master] = _copy_of(master)
        torch._foreach_copy_([self._copies[master] for master in masters], masters)
        self._versions = versions


def _copy_of(master: Parameter) -> Parameter:
    """A bfloat16 parameter that gives its gradients away to its master."""
    copy = Parameter(torch.empty_like(master, dtype=torch.bfloat16), master.requires_grad)

    def give(copy: Parameter) -> None:
        gradient, copy.grad = copy.grad, None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient

    if master.requires_grad:
        copy.register_post_accumulate_grad_hook(give)
    return copy
