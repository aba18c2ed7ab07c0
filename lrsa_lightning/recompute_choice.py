"""`recompute: auto`: the fastest policies that fit into the memory that a device has free."""

import logging
from collections import Counter
from collections.abc import Iterable

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lrsa_lightning.devices import H100
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.memory import (
    AUTO_FRACTION,
    POLICIES,
    LayerShape,
    activation_bytes,
    choose_policies,
    loss_bytes,
    recomputed_work,
    working_bytes,
)
from lrsa_lightning.plan.sequence import rank_shape
from lrsa_lightning.recompute import Policy

log = logging.getLogger(__name__)


def policies(module: LightningModule, trainer: Trainer) -> list[Policy]:
    """A policy for each decoder layer, the same on all ranks: the module's own, or what auto chooses and logs.

    Weights are on the device by now. auto takes `none` on a CPU. Elsewhere it counts what the first step adds:
    gradients, AdamW's moments, bfloat16 copies.

    Args:
        module: a LongContextModule with its model.
        trainer: at the start of training.
    """
    device, layers = trainer.strategy.root_device, len(module.model.get_decoder().layers)
    if module.recompute != "auto":
        return [module.recompute] * layers
    if device.type == "cpu":
        return ["none"] * layers
    budget = int(AUTO_FRACTION * _free(device)) - _of_first_step(trainer)
    budget = int(trainer.strategy.reduce(torch.tensor(float(budget), device=device), reduce_op="min"))
    try:
        chosen = _choose(layers, budget, module, trainer)
    except AttributeError as error:  # an architecture without the sizes of a usual decoder
        chosen = ["full"] * layers
        log.info("recompute auto: full, because the memory of this architecture is unknown (%s)", error)
    else:
        counts = Counter(chosen)
        parts = ", ".join(f"{counts[policy]} layers {policy}" for policy in POLICIES if counts[policy])
        log.info("recompute auto: %s, for %.1f GiB of activations", parts, budget / 2**30)
        if budget < 0:
            log.warning("gradients and optimizer states alone do not fit in the free memory of %s", device)
    return chosen


def _free(device: torch.device) -> int:
    """Bytes that tensors can still have on the device."""
    memory = torch.get_device_module(device)
    in_use = memory.memory_reserved(device) - memory.memory_allocated(device)
    return memory.mem_get_info(device)[0] + in_use


def _of_first_step(trainer: Trainer) -> int:
    """Bytes of gradients and optimizer states that do not exist yet, on this rank."""
    total = 0
    for optimizer in trainer.optimizers:
        for parameter in _parameters(optimizer):
            size = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            bytes_of_one = 4 if parameter.grad is None else 0
            bytes_of_one += 0 if optimizer.state.get(parameter) else 2 * size.element_size()
            total += bytes_of_one * size.numel()
    return total + getattr(trainer.precision_plugin, "bytes_of_copies", 0)


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _choose(layers: int, budget: int, module: LightningModule, trainer: Trainer) -> list[Policy]:
    shape = _shape(module, trainer)
    loss = loss_bytes(shape, module.loss_chunk_size, module.model.config.get_text_config(decoder=True).vocab_size)
    return choose_policies(
        layers,
        {policy: activation_bytes(shape, policy) for policy in POLICIES},
        {policy: H100.seconds(recomputed_work(shape, policy)) for policy in POLICIES},
        budget,
        {policy: max(loss, working_bytes(shape, policy)) for policy in POLICIES},
    )


def _shape(module: LightningModule, trainer: Trainer) -> LayerShape:
    """A layer as this rank sees it, from the numbers of the run."""
    strategy, precision = trainer.strategy, str(trainer.precision)
    config = module.model.config.get_text_config(decoder=True)
    shared = isinstance(strategy, SequenceParallelStrategy)
    sequence = strategy.sequence_parallel if shared else SequenceParallel()
    element, residual = (4 if precision == "32-true" else 2), (4 if precision.endswith("mixed") else None)
    rows = getattr(trainer.datamodule, "micro_batch_size", 1)
    is_fused = module.fused_layers is not False
    mode = module.attention.for_length(module.seq_len)
    return rank_shape(config, mode, sequence, rows, module.seq_len, element, residual or element, is_fused, 0)
