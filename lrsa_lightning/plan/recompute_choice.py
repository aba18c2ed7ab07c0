"""`recompute: auto`: the fastest policies that fit into the memory that a device has free."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.errors import InputError
from lrsa_lightning.fused.operators import has_fused_mlp, missing
from lrsa_lightning.optimizer.settings import OptimizerSettings
from lrsa_lightning.plan.devices import FRAGMENTS, H100
from lrsa_lightning.plan.division import Division
from lrsa_lightning.plan.layer_shape import LayerShape
from lrsa_lightning.plan.memory import AUTO_FRACTION, POLICIES, fastest_policies, loss_bytes
from lrsa_lightning.plan.model_size import adapters_of
from lrsa_lightning.plan.sequence import rank_shape
from lrsa_lightning.plan.states import precision_of
from lrsa_lightning.recompute.policies import Policy

log = logging.getLogger(__name__)


def policies(module: LightningModule, trainer: Trainer) -> list[Policy]:
    """A policy for each decoder layer, the same on all ranks: the module's own, or what auto chooses and logs.

    Weights are on the device by now. auto takes `none` on a CPU. Elsewhere it also counts what the first step adds.

    Args:
        module: a LongContextModule with its model.
        trainer: at the start of training.
    """
    device, layers = trainer.strategy.root_device, len(module.model.get_decoder().layers)
    if module.recompute != "auto":
        return [module.recompute] * layers
    if device.type == "cpu":
        return ["none"] * layers
    budget = _free(device) - of_first_step(trainer, module.optimizer)
    budget = int(trainer.strategy.reduce(torch.tensor(float(budget), device=device), reduce_op="min"))
    try:
        chosen = choose(layers, budget, module, trainer)
    except (AttributeError, InputError) as error:  # sizes or a precision that the plan does not know
        chosen = ["full"] * layers
        log.info("recompute auto: full, because the memory of this run is unknown (%s)", error)
    else:
        counts = Counter(chosen)
        parts = ", ".join(f"{counts[policy]} layers {policy}" for policy in POLICIES if counts[policy])
        log.info("recompute auto: %s, for %.1f GiB of activations", parts, budget / 2**30)
        if budget < 0:
            log.warning("gradients and optimizer states alone do not fit in the free memory of %s", device)
    return chosen


def _free(device: torch.device) -> int:
    """Bytes for what does not exist yet, if tensors are to take `AUTO_FRACTION` of what they can have."""
    memory = torch.get_device_module(device)
    allocated = memory.memory_allocated(device)
    total = memory.mem_get_info(device)[0] + memory.memory_reserved(device)
    return int(AUTO_FRACTION * (1 - FRAGMENTS) * total) - allocated


def of_first_step(trainer: Trainer, settings: OptimizerSettings) -> int:
    """Bytes of gradients, optimizer states and bfloat16 copies that do not exist yet, on this rank."""
    total = getattr(trainer.precision_plugin, "bytes_of_copies", 0)
    found, args = settings.found, settings.args or {}
    for optimizer in trainer.optimizers:
        for parameter in _parameters(optimizer):
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if parameter.grad is None:
                total += own.numel() * own.element_size()
            if not optimizer.state.get(parameter):
                total += int(found.state_bytes(args, own.numel(), own.element_size()))
    return total


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def choose(layers: int, budget: int, module: LightningModule, trainer: Trainer) -> list[Policy]:
    """The fastest policies for a number of layers that fit into a budget of bytes."""
    shape, vocab_size = _shape(module, trainer), module.model.config.get_text_config(decoder=True).vocab_size
    loss = loss_bytes(shape, module.loss_chunk_size, vocab_size)
    trains_embedding = any(p.requires_grad for p in module.model.get_input_embeddings().parameters())
    pending = vocab_size * shape.hidden * shape.element if trains_embedding else 0
    return fastest_policies(layers, shape, budget, loss, pending, H100)


def _shape(module: LightningModule, trainer: Trainer) -> LayerShape:
    """A layer as this rank sees it, from the numbers of the run."""
    strategy, device_type = trainer.strategy, trainer.strategy.root_device.type
    division = Division("zero" if isinstance(strategy, DeepSpeedStrategy) else "single")
    precision = precision_of(trainer.precision, division)
    shared = isinstance(strategy, SequenceParallelStrategy)
    sequence = strategy.sequence_parallel if shared else SequenceParallel()
    is_fused = module.fused_layers is not False and not missing(device_type)
    settings = (
        getattr(trainer.datamodule, "micro_batch_size", 1),
        module.seq_len,
        precision.element,
        precision.residual,
        is_fused,
        0,
    )
    config = module.model.config.get_text_config(decoder=True)
    modes = [mode for mode, _ in module.attention.for_length(module.seq_len).phases()]
    # Steps may differ in their attention: that of the most memory must fit.
    shapes = (rank_shape(config, mode, sequence, *settings) for mode in modes)
    shape = max(shapes, key=lambda shape: shape.attention_bytes)
    adapters = adapters_of(module.model.get_decoder().layers)
    is_plain = module.starting_model.quantisation is None and (adapters is None or not adapters.in_mlp)
    return replace(shape, has_fused_mlp=is_fused and is_plain and has_fused_mlp(device_type), adapters=adapters)
