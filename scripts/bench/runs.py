"""The rows of a bench: what each trains, and how `lrsa fit` trains it."""

import gc
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bench.clock import Measured, StepClock
from bench.peer import run_peer
from bench.settings import Settings
from lrsa_lightning import LRSA, AttentionMode, Vanilla
from lrsa_lightning.cli import LRSACLI
from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.configs import CONFIG_DIR
from lrsa_lightning.metrics import METRICS

_NEEDS_ACCOUNT_OR_TIME = ("WandbLogger", "RulerEval")
FLASH_4 = "bench_fa4"  # transformers looks up names with flash in them at its hub


@dataclass(frozen=True)
class Row:
    """A row of the table: what is trained, and how.

    Attributes:
        name: of the row.
        mode: the attention.
        peer: by transformers' Trainer instead of `lrsa fit`.
        liger: with Liger's kernels, for the peer.
        trainer: keys of `trainer:` that replace those of a single device.
        global_batch: rows of an optimizer step, if they are not the settings'.
    """

    name: str
    mode: AttentionMode
    peer: bool = False
    liger: bool = False
    trainer: Mapping[str, Any] = field(default_factory=dict)
    global_batch: int | None = None

    def left_out(self) -> str | None:
        """Why this machine cannot run it; None if it can."""
        if self.peer and find_spec("accelerate") is None:
            return "accelerate is not installed"
        if self.liger and (not torch.cuda.is_available() or find_spec("liger_kernel") is None):
            return "needs a CUDA GPU and liger-kernel"
        if isinstance(self.mode, Vanilla) and self.mode.implementation == FLASH_4 and not has_flash_4():
            return "needs a Hopper GPU and flash-attn-4"
        return None

    def run(self, settings: Settings, device: torch.device) -> dict[str, Any]:
        """Figures of `StepClock` and of `run_ours`."""
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        clock = settings.clock(device)
        try:
            further = run_peer(settings, self.liger, clock) if self.peer else run_ours(self, settings, clock)
        finally:
            gc.collect()  # the exception held the model
        return clock.figures | further


def step_rows(ratios: list[float], lag_size: int) -> list[Row]:
    """The rows of bench_step.py; those that the others are compared with come first."""
    lrsa = [Row(f"LRSA r={ratio:g}", LRSA(lag_size=lag_size, retention_ratio=ratio)) for ratio in ratios]
    return [
        Row("plain Trainer, Liger", Vanilla(), peer=True, liger=True),
        Row("Vanilla FlashAttention-4", Vanilla(FLASH_4)),
        *lrsa,
        Row("Vanilla sdpa", Vanilla()),
        Row("plain Trainer", Vanilla(), peer=True),
    ]


def has_flash_4() -> bool:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return False
    return find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None


def register_flash_4() -> None:
    """Makes dense FlashAttention-4 known to transformers. Some of its versions do not find the package themselves."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FLASH_4, _flash_4)
    AttentionMaskInterface.register(FLASH_4, lambda *_, **__: None)


def _flash_4(module, q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, *_, **__) -> tuple[Tensor, None]:
    from flash_attn.cute import flash_attn_func

    if torch.is_autocast_enabled("cuda"):  # RoPE leaves float32
        dtype = torch.get_autocast_dtype("cuda")
        q_BHND, k_BGND, v_BGND = (z.to(dtype) for z in (q_BHND, k_BGND, v_BGND))
    out = flash_attn_func(*(z.transpose(1, 2) for z in (q_BHND, k_BGND, v_BGND)), causal=True)
    return (out[0] if isinstance(out, tuple) else out), None


class Ticks(Callback):
    """Calls the clock after each optimizer step.

    Attributes:
        received_gib: what this rank received a step for the shared sequences, in bfloat16.
    """

    def __init__(self, tick: Callable[[], None]):
        self._tick = tick
        self._last_step = 0
        self._trainer: Trainer | None = None
        self.received_gib = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step == self._last_step:
            return
        self._last_step, self._trainer = trainer.global_step, trainer
        if (sharding := getattr(trainer.strategy, "sharding", None)) is not None:
            self.received_gib = 2 * sum(sharding.group.received.values()) / 2**30 / trainer.global_step
        self._tick()

    def release(self) -> None:
        """Frees the device: DeepSpeed's hooks would keep weights and states there."""
        engine = getattr(getattr(self._trainer, "strategy", None), "deepspeed_engine", None)
        self._trainer = None
        if engine is not None:
            engine.destroy()


class _TimedCLI(LRSACLI):
    """`lrsa fit` with one callback more."""

    def __init__(self, arguments: list[str], ticks: Ticks):
        self._ticks = ticks
        super().__init__(arguments)

    def instantiate_trainer(self, **kwargs) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self._ticks)
        return trainer


def run_ours(row: Row, settings: Settings, clock: StepClock) -> dict[str, Any]:
    """Trains through `lrsa fit`.

    Returns:
        losses, as far as they were logged, and received_gib of `Ticks`.
    """
    register_flash_4()
    ticks, runs = Ticks(clock.tick), settings.inputs.folder / "runs"
    run_name = re.sub(r"\W+", "-", row.name)
    with suppress(Measured):
        report_input_errors(_TimedCLI)(fit_arguments(row, settings, runs, run_name), ticks)
    ticks.release()
    metrics = runs / run_name / METRICS
    logged = map(json.loads, metrics.read_text(encoding="utf-8").splitlines()) if metrics.exists() else ()
    return {"losses": [one["train/loss"] for one in logged if "train/loss" in one], "received_gib": ticks.received_gib}


def fit_arguments(row: Row, settings: Settings, runs_dir: Path, run_name: str) -> list[str]:
    """The command line of `lrsa fit`: what a user gets, without the RULER evaluation and the W&B account."""
    inputs, device = settings.inputs, "single_gpu" if torch.cuda.is_available() else "cpu"
    trainer = default_callbacks() | row.trainer
    options = {
        "model.name_or_path": inputs.model,
        "model.attention": json.dumps(attention_entry(row.mode)),
        "data.train_files": inputs.train_file,
        "data.extend": "false",
        "data.seq_len": inputs.length,
        "data.global_batch_size": row.global_batch or settings.global_batch,
        "data.micro_batch_size": settings.micro_batch,
        "data.cache_dir": inputs.folder / "cache",
        "runs_dir": runs_dir,
        "run_name": run_name,
        **{f"trainer.{key}": v if isinstance(v, str) else json.dumps(v) for key, v in trainer.items()},
    }
    files = (CONFIG_DIR / "trainer" / f"{device}.yaml", CONFIG_DIR / "model" / "qwen2.5-1.5b.yaml")
    configs = [f"--config={file}" for file in files]
    return ["fit", *configs, *(f"--{key}={value}" for key, value in options.items()), *settings.passed]


def default_callbacks() -> dict[str, Any]:
    """Callbacks and loggers of base.yaml, but those that need an account or evaluate."""
    trainer = yaml.safe_load((CONFIG_DIR / "base.yaml").read_text(encoding="utf-8"))["trainer"]
    return {
        key: [entry for entry in trainer[key] if not entry["class_path"].endswith(_NEEDS_ACCOUNT_OR_TIME)]
        for key in ("callbacks", "logger")
    }


def attention_entry(mode: AttentionMode) -> dict[str, Any]:
    """The mode as YAML names it."""
    if isinstance(mode, Vanilla):
        return {"class_path": "lrsa_lightning.attention.Vanilla", "init_args": {"implementation": mode.implementation}}
    sizes = {name: getattr(mode, name) for name in ("lag_size", "retention_ratio", "sink_size")}
    return {"class_path": "lrsa_lightning.attention.LRSA", "init_args": sizes}
