"""How fast a run is, how well it uses its devices, and where its time goes."""

import logging
from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from lrsa_lightning.attention import AttentionMode
from lrsa_lightning.callbacks.ruler_eval import RULER_CHECK
from lrsa_lightning.collectives import max_over_ranks
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.precision import MasterPrecision
from lrsa_lightning.ranges import PositiveFiniteFloat, PositiveInt, checked
from lrsa_lightning.step_log import READING, StepRow

log = logging.getLogger(__name__)

# Lightning's names of the work that its profiler measures. The rest is logging, drawing and the like.
_PARTS = {
    "[_TrainingEpochLoop].train_dataloader_next": "data",
    "run_training_batch": "compute",
    RULER_CHECK: "evaluation",
    "validation": "evaluation",
    "save_checkpoint": "checkpoints",
}
_SYNCHRONOUS = ("evaluation", "checkpoints")  # the host has their results when they end
# The data sheet's dense bfloat16 peak. Lightning's table lacks the name "NVIDIA H200" and lists the sparse peak.
_H200_BF16 = 989.4e12
_ASCEND_910B_BF16 = 354e12  # approximately, from public tables


class Throughput(Callback):
    """Logs tokens per second, model FLOPs utilisation, peak memory, and the seconds of each part of a step.

    Padding does not count as tokens. ``mfu`` counts the operations of the mode's own attention. ``mfu_dense`` counts
    those of full causal attention: a dense run needs this utilisation to be as fast. A sparse mode's may exceed 1.
    Where the device's peak is unknown, only the TFLOP/s are logged. The speed leaves out evaluations, and the first
    step, which may compile.

    ``seconds/*`` are the host's, from the end of the step before. They add up to the time that has passed. The host
    waits for the device only where the metrics are read (`trainer.log_every_n_steps`), and before an evaluation or a
    checkpoint. ``compute`` is therefore the mean over the steps that were read together; it has the time of the
    kernel launches and of the wait. ``data`` is the wait for the next micro-batch, during which the device may work.
    """

    @checked
    def __init__(self, window: PositiveInt = 10, peak_tflops: PositiveFiniteFloat | None = None):
        """
        Args:
            window: optimizer steps over which the speed is averaged.
            peak_tflops: peak of one device in the run's precision; by the device's name when None.

        Raises:
            InputError: a number is outside its range.
        """
        self.peak_tflops = peak_tflops
        self._steps: deque[_Step] = deque(maxlen=window)
        self._lengths: Counter[int] = Counter()
        self._laps: dict[int, _Lap] = {}
        self._is_first = True
        self._clock: StepProfiler | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device
        self._decoder = DecoderFlops.of(pl_module.model.config)
        self._peak = self.peak_tflops * 1e12 if self.peak_tflops else _peak_flops(trainer)
        if self._peak is None and device.type != "cpu" and trainer.is_global_zero:
            log.info("the peak of this device is unknown: set Throughput.peak_tflops to see the utilisation")
        trainer.profiler = self._clock = StepProfiler(trainer.profiler, device)
        self._last_step, self._last_seen, self._laps = trainer.global_step, pl_module.seen_tokens, {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.profiler = self._clock.inner

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._clock is not None:
            trainer.profiler = self._clock.inner

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.profiler.start("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.profiler.stop("validation")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        sharding = getattr(trainer.strategy, "sharding", None)
        rows = len(batch["input_ids"])
        self._lengths.update(lengths_of(batch) if sharding is None else [sharding.seq_len] * rows)
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self._laps[trainer.global_step] = _Lap(self._clock.lap(), self._lengths, pl_module.step_attention)
        self._lengths = Counter()
        pl_module.step_log.add(_memory(trainer.strategy.root_device))

    def on_steps_read(self, trainer: Trainer, pl_module: LightningModule, rows: list[StepRow]) -> None:
        """The device is idle now: the time since the last reading is that of the steps read."""
        read = [(row.values, self._laps.pop(row.step)) for row in rows if row.step in self._laps]
        if not read:
            return
        compute = self._clock.take_wait() + sum(lap.seconds["compute"] for _, lap in read)
        sharding = getattr(trainer.strategy, "sharding", None)
        sharing = 1 if sharding is None else sharding.group.size
        for values, lap in read:
            seconds = lap.seconds | {"compute": compute / len(read)}
            self._add_step(pl_module, values, lap, _training(seconds), trainer.world_size, sharing)
            values |= {f"throughput/seconds/{part}": value for part, value in seconds.items()}
            if self._steps:
                values |= {f"throughput/{name}": value for name, value in self._speed(trainer.world_size).items()}

    def _add_step(
        self,
        pl_module: LightningModule,
        values: Mapping[str, float],
        lap: "_Lap",
        seconds: float,
        num_devices: int,
        sharing: int,
    ) -> None:
        """Each of the ``sharing`` devices that hold segments of a row does its part of the row's operations."""
        seen = int(values["train/tokens"]), int(values["train/answer_tokens"])
        tokens, label_tokens = (now - then for now, then in zip(seen, self._last_seen, strict=True))
        self._last_seen = seen
        labels, trains_weights = label_tokens * sharing // num_devices, not pl_module.starting_model.has_adapters
        flops = self._decoder.training(lap.lengths, labels, lap.attention, trains_weights)
        if not self._is_first:
            self._steps.append(_Step(seconds, tokens, flops.real // sharing, flops.dense // sharing))
        self._is_first = False

    def _speed(self, num_devices: int) -> dict[str, float]:
        total = _Step(*map(sum, zip(*self._steps, strict=True)))
        tokens = total.tokens / total.seconds
        speed = {"tokens_per_second": tokens, "tokens_per_second_per_device": tokens / num_devices}
        for suffix, flops in (("", total.flops), ("_dense", total.dense_flops)):
            speed[f"tflops_per_device{suffix}"] = flops / total.seconds / 1e12
            if self._peak is not None:
                speed[f"mfu{suffix}"] = flops / total.seconds / self._peak
        return speed


class _Lap(NamedTuple):
    """What the host knows at the end of a step: seconds of its parts, how many sequences of each length, the mode."""

    seconds: dict[str, float]
    lengths: Counter[int]
    attention: AttentionMode


class _Step(NamedTuple):
    """An optimizer step, or several: seconds, tokens of the global batches, operations of this device."""

    seconds: float
    tokens: int
    flops: int
    dense_flops: int


class StepProfiler(Profiler):
    """Adds up the seconds of a step's parts, and calls the profiler that the user may have chosen.

    Attributes:
        inner: the user's profiler.
    """

    def __init__(self, inner: Profiler, device: torch.device):
        super().__init__()
        self.inner = inner
        self._device = device
        self._seconds: Counter[str] = Counter()
        self._running: dict[str, float] = {}
        self._waited = 0.0
        self._lap_started = perf_counter()

    def start(self, action_name: str) -> None:
        part = _PARTS.get(action_name)
        if part in _SYNCHRONOUS and self._device.type != "cpu":
            started = perf_counter()
            torch.accelerator.synchronize(self._device)  # what the device still has to do is training's
            self._seconds["compute"] += perf_counter() - started
        if part is not None or action_name == READING:
            self._running[action_name] = perf_counter()
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        self.inner.stop(action_name)
        if action_name in self._running:
            seconds = perf_counter() - self._running.pop(action_name)
            if action_name == READING:
                self._waited += seconds
            else:
                self._seconds[_PARTS[action_name]] += seconds

    def lap(self) -> dict[str, float]:
        """Seconds of each part since the last lap; "other" has the rest. The device may still work."""
        now = perf_counter()
        seconds = {part: self._seconds[part] for part in dict.fromkeys(_PARTS.values())}
        seconds["other"] = now - self._lap_started - self._waited - sum(seconds.values())
        self._seconds.clear()
        self._lap_started, self._waited = now, 0.0
        return seconds

    def take_wait(self) -> float:
        """Seconds since the last lap that the host has waited for the device to read metrics. No lap has them."""
        waited, self._waited = self._waited, 0.0
        self._lap_started += waited
        return waited


def _training(seconds: Mapping[str, float]) -> float:
    return sum(seconds.values()) - seconds["evaluation"]


def _memory(device: torch.device) -> dict[str, Tensor]:
    """Peak memory of the fullest device, where it is known; the tensor is made on the device, not copied to it."""
    memory = torch.get_device_module(device)  # torch.cuda, torch.npu
    if not hasattr(memory, "max_memory_allocated"):
        return {}
    peak = memory.max_memory_allocated(device) / 2**30
    return {"throughput/peak_memory_gib": max_over_ranks(torch.full((), peak, device=device))}


def lengths_of(batch: dict[str, Any]) -> list[int]:
    """Lengths of the sequences of a micro-batch that attend within themselves: its rows, or their packed samples."""
    num_rows, num_tokens = batch["input_ids"].shape
    if "cu_seqlens" not in batch:
        return [num_tokens] * num_rows
    return [end - start for boundaries in batch["cu_seqlens"] for start, end in pairwise(boundaries)]


def _peak_flops(trainer: Trainer) -> float | None:
    """Peak operations per second of one device's data sheet, for matrices in the run's precision."""
    device, plugin = trainer.strategy.root_device, trainer.precision_plugin
    dtype = torch.bfloat16 if isinstance(plugin, MasterPrecision) else _plugin_to_compute_dtype(plugin)
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "npu" and "910B" in torch.npu.get_device_name(device) and is_half:
        return _ASCEND_910B_BF16
    if device.type != "cuda":
        return None
    if "H200" in torch.cuda.get_device_name(device) and is_half:
        return _H200_BF16
    return get_available_flops(device, dtype)
