"""The settings that a run adds to DeepSpeed's configuration, and the user's settings that it refuses."""

import os
import shutil
from typing import Any

from lrsa_lightning.errors import InputError

# Keys that duplicate a setting of the run: DeepSpeed would apply both, or its own alone.
_SET_ELSEWHERE = {
    "optimizer": "model.optimizer, model.lr, model.betas and model.weight_decay",
    "scheduler": "model.scheduler, model.lr and model.warmup_steps",
    "gradient_accumulation_steps": "data.global_batch_size and data.micro_batch_size",
    "train_batch_size": "data.global_batch_size",
    "gradient_clipping": "trainer.gradient_clip_val",
    "sequence_parallel_size": "the strategy's sequence_parallel.size",
}
_BIT16 = {"bf16-mixed": "bf16", "bf16-true": "bf16", "16-mixed": "fp16", "16-true": "fp16"}


def stage_of(config: dict[str, Any]) -> int:
    """ZeRO's stage; 0 where it is off."""
    return _zero(config).get("stage", 0)


def check_config(config: dict[str, Any]) -> None:
    """
    Raises:
        InputError: a key duplicates a setting of the run, or the stage is not 1, 2 or 3.
    """
    for key, setting in _SET_ELSEWHERE.items():
        if key in config:
            raise InputError(f"the strategy's DeepSpeed config sets {key!r}: leave it out, {setting} says it")
    if stage_of(config) not in (1, 2, 3):
        raise InputError(
            f"the strategy's DeepSpeed config has ZeRO stage {stage_of(config)}: set zero_optimization.stage to 1, 2 "
            "or 3, or take the strategy sp_ddp, which divides nothing"
        )
    if offloads(config, "offload_param") and stage_of(config) < 3:
        raise InputError(
            f"offload_parameters needs ZeRO stage 3, not {stage_of(config)}: set stage: 3, or leave it out"
        )


def check_compiler(config: dict[str, Any]) -> None:
    """
    Raises:
        InputError: states are offloaded, and this machine cannot compile DeepSpeed's AdamW.
    """
    from deepspeed.git_version_info import installed_ops

    if not offloads(config, "offload_optimizer") or installed_ops.get("cpu_adam"):
        return
    compiler = os.environ.get("CXX", "c++")
    if missing := [name for name in (compiler, "ninja") if shutil.which(name) is None]:
        raise InputError(
            f"offload_optimizer: DeepSpeed compiles its AdamW for CPUs, but there is no {' and no '.join(missing)}: "
            "install a C++ compiler and ninja (pip install ninja), or leave offload_optimizer out"
        )


def check_precision(config: dict[str, Any], precision: str, has_fp16: bool) -> None:
    """
    Raises:
        InputError: the configuration and the trainer name different precisions, or the device lacks the precision.
    """
    dtype = _BIT16.get(precision)
    for key in ("bf16", "fp16"):
        if key in config and bool(config[key].get("enabled")) != (key == dtype):
            raise InputError(
                f"the strategy's DeepSpeed config says {key}: {config[key]}, the trainer's precision is {precision}: "
                f"leave {key!r} out, trainer.precision says it"
            )
    if dtype == "fp16" and not has_fp16:
        raise InputError(f"DeepSpeed has no float16 on this device: set trainer.precision bf16-mixed, not {precision}")


def sum_gradients_in_float32(config: dict[str, Any]) -> None:
    """Sums gradients over micro-batches and ranks in float32, unless the configuration names other types.

    DeepSpeed's default is the dtype of the weights. In bf16, 16 micro-batches lose 0.4% of the gradient, and the sum
    over the ranks depends on their number. Stage 1 still accumulates in the dtype of the weights: with float32,
    DeepSpeed (0.19.8) uses another optimizer. That one cannot skip a step, and DeepSpeed's own tools cannot read its
    checkpoints.
    """
    config.setdefault("communication_data_type", "fp32")
    if stage_of(config) > 1 and _accumulation_type(config) is None:
        config["data_types"] = {**(config.get("data_types") or {}), "grad_accum_dtype": "fp32"}


def check_accumulation(config: dict[str, Any], precision: str, micro_batches: int) -> None:
    """
    Args:
        config: DeepSpeed's.
        precision: of the trainer.
        micro_batches: gradient accumulation steps of one rank.

    Raises:
        InputError: DeepSpeed would sum 16-bit gradients in 16 bits, and the user did not choose that.
    """
    from deepspeed.runtime.config import DtypeEnum

    given = _accumulation_type(config)
    try:
        chosen = None if given is None else DtypeEnum(given).name
    except ValueError as error:
        raise InputError(
            f"the strategy's DeepSpeed config says data_types.grad_accum_dtype: {given!r}, but must say fp32 or bf16"
        ) from error
    if stage_of(config) > 1 or precision not in _BIT16:
        return
    dtype, advice = _BIT16[precision], "set stage: 2, which takes less memory"
    if chosen == "fp32" and dtype == "bf16":
        raise InputError(
            "ZeRO stage 1 with data_types.grad_accum_dtype fp32 can neither skip a step nor read its checkpoints: "
            f"{advice}"
        )
    if chosen is None and micro_batches > 1:
        raise InputError(
            f"ZeRO stage 1 would sum the gradients of {micro_batches} micro-batches in {dtype}: {advice}, "
            "raise data.micro_batch_size until a step has one micro-batch, or accept it with data_types: "
            f"{{grad_accum_dtype: {dtype}}} in the strategy's config"
        )


def _zero(config: dict[str, Any]) -> dict[str, Any]:
    given = config.get("zero_optimization") or {}
    if not isinstance(given, dict):
        raise InputError(
            f"the strategy's DeepSpeed config has zero_optimization: {given!r}, but must have a mapping there"
        )
    return given


def offloads(config: dict[str, Any], what: str) -> bool:
    return (_zero(config).get(what) or {}).get("device", "none") != "none"


def _accumulation_type(config: dict[str, Any]) -> Any:
    return (config.get("data_types") or {}).get("grad_accum_dtype")
