"""Which optimizers run on which device and under which strategy. All that are not refused were seen to resume."""

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy

from lrsa_lightning.distributed.zero_config import offloads
from lrsa_lightning.errors import InputError
from lrsa_lightning.optimizer.names import OptimizerName

_OF_SHAPES = {
    "adafactor": "needs the rows and columns of a matrix",
    "lamb": "needs the norm of a complete weight",
    "lars": "needs the norm of a complete weight",
}
_WAY_OUT = "take model.optimizer.name adamw, or another trainer.strategy"


def check_optimizer_strategy(optimizer: OptimizerName, args: dict, strategy: Strategy) -> None:
    """
    Args:
        optimizer: its name and library.
        args: its arguments.
        strategy: of the run.

    Raises:
        InputError: the optimizer does not run on the device or under the strategy; says why.
    """
    what = f"model.optimizer.name {optimizer.name}"
    if strategy.root_device.type == "npu" and optimizer.library != "torch":
        raise InputError(f"{what} is {optimizer.library}'s, which has no kernels for NPUs: take one of torch's")
    if isinstance(strategy, DeepSpeedStrategy):
        reason = _under_zero(optimizer, strategy)
    elif isinstance(strategy, ModelParallelStrategy):
        reason = _under_fsdp2(optimizer, args)
    else:
        reason = None
    if reason is not None:
        raise InputError(f"{what} does not run here: {reason}: {_WAY_OUT}")


def _under_zero(optimizer: OptimizerName, strategy: DeepSpeedStrategy) -> str | None:
    if optimizer.base in _OF_SHAPES:
        return f"it {_OF_SHAPES[optimizer.base]}, and ZeRO makes weights flat"
    if optimizer == OptimizerName("torch", "adagrad"):
        return "DeepSpeed treats Adagrad apart, and its first step fails"
    if optimizer != OptimizerName("torch", "adamw") and offloads(strategy.config, "offload_optimizer"):
        return "offload_optimizer takes DeepSpeed's own AdamW for CPUs"
    return None


def _under_fsdp2(optimizer: OptimizerName, args: dict) -> str | None:
    if optimizer.library == "bitsandbytes":
        return "bitsandbytes' kernels take no weights that FSDP2 divides"
    if optimizer.library == "torchao":
        return "torchao's compiled step takes no weights that FSDP2 divides into unequal parts"
    if optimizer.base in _OF_SHAPES:
        return f"it {_OF_SHAPES[optimizer.base]}, and FSDP2 divides weights"
    if optimizer.state_bytes(args, 1, 4) == 0:
        return "an optimizer without states cannot resume from FSDP2's checkpoints"
    return None
