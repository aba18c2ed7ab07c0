"""Collectives, and runs of `lrsa fit` whose losses must not depend on devices, strategy or launch mode."""

import json
import os
import signal
import subprocess
import sys
import time
from math import isfinite
from pathlib import Path

from lrsa_lightning.metrics import METRICS, points, read_rows
from lrsa_lightning.npu.check.settings import Failed, Settings


def collectives(settings: Settings) -> dict:
    """all_reduce, all_gather, reduce_scatter and all_to_all on 2 and on all devices: values and bandwidth."""
    counts = sorted({min(2, settings.devices), settings.devices})
    return {f"{ranks}_ranks": _collectives(settings, ranks) for ranks in counts}


def _collectives(settings: Settings, ranks: int) -> dict:
    megabytes = settings.size(256, 1)
    worker = [sys.executable, "-m", "lrsa_lightning.npu.check.collectives", str(megabytes)]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29677", "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(worker, env=os.environ | address | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise Failed(f"collectives failed on ranks {[r for r, p in enumerate(processes) if p.returncode]}")
    return json.loads(outputs[0].splitlines()[-1])


def steps(settings: Settings) -> dict:
    """Steps of a Qwen2.5 in bf16-mixed without a fall-back to the CPU, and their throughput."""
    callbacks = json.dumps([{"class_path": "lrsa_lightning.callbacks.Throughput", "init_args": {"peak_tflops": 354}}])
    run = _fit(settings, "bf16", {"trainer.precision": "bf16-mixed", "trainer.callbacks": callbacks})
    losses = _curve(run)
    if not all(isfinite(loss) for loss in losses.values()):
        raise Failed(f"losses are not finite: {losses}")
    speed = {name: [*_curve(run, f"throughput/{name}").values()] for name in ("tokens_per_second", "mfu")}
    return {"losses": losses} | {name: values[-1] for name, values in speed.items() if values}


def ddp(settings: Settings) -> dict:
    """Distributed data parallel has the losses of one device."""
    return _same_as_one(settings, "ddp", _on_all(settings, "NPUDDPStrategy"))


def zero2(settings: Settings) -> dict:
    """ZeRO-2 with Ulysses at degree 2 has the losses of one device."""
    return _same_as_one(settings, "zero2", _zero(settings, 2, "ulysses"))


def zero3(settings: Settings) -> dict:
    """ZeRO-3 with context parallelism at degree 2 has the losses of one device."""
    return _same_as_one(settings, "zero3", _zero(settings, 3, "context"))


def _zero(settings: Settings, stage: int, kind: str) -> dict[str, str]:
    size = 1 if settings.devices % 2 else 2
    return _on_all(settings, "NPUDeepSpeedStrategy", stage=stage, sequence_parallel={"size": size, "kind": kind})


def task_queue(settings: Settings) -> dict:
    """Each other mode of TASK_QUEUE_ENABLE, which launches operators, has the losses of one device."""
    others = {"0", "1", "2"} - {os.environ.get("TASK_QUEUE_ENABLE", "1")}
    return {m: _same_as_one(settings, f"queue{m}", {}, TASK_QUEUE_ENABLE=m)["worst"] for m in sorted(others)}


def resume(settings: Settings) -> dict:
    """A killed and resumed run has the losses of an uninterrupted one, bit for bit."""
    callbacks = [{"class_path": "lrsa_lightning.callbacks.Checkpoints", "init_args": {"every_n_steps": 1}}]
    options = {"trainer.callbacks": json.dumps(callbacks)}
    command, metrics = _command(settings, "killed", options), settings.folder / "runs" / "killed" / METRICS
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and _last_step(metrics) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise Failed("the run ended before it could be killed")
    killed_at = _last_step(metrics)
    options["ckpt_path"] = "last"
    return {"killed_at": killed_at} | _same_as_one(settings, "killed", options, tolerance=0.0)


def _last_step(metrics: Path) -> int:
    return metrics.read_text().count("train/loss") if metrics.exists() else 0


def _same_as_one(
    settings: Settings, name: str, options: dict, tolerance: float = 1e-3, **environment: str
) -> dict[str, float]:
    reference = settings.folder / "runs" / "single"
    if not reference.exists():
        _fit(settings, reference.name, {})
    expected, losses = _curve(reference), _curve(_fit(settings, name, options, **environment))
    if losses.keys() != expected.keys():
        raise Failed(f"logged steps {sorted(losses)}, expected {sorted(expected)}")
    worst = max(abs(losses[step] - loss) / abs(loss) for step, loss in expected.items())
    if worst > tolerance:
        raise Failed(f"losses differ by {worst:.1e} of their value: {losses}, expected {expected}")
    return {"worst": worst}


def _on_all(settings: Settings, strategy: str, **arguments) -> dict[str, str]:
    plugin = {"class_path": f"lrsa_lightning.npu.{strategy}", "init_args": arguments}
    return {"trainer.strategy": json.dumps(plugin), "trainer.devices": str(settings.devices)}


def _command(settings: Settings, name: str, options: dict[str, str]) -> list[str]:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = (small if settings.small else sizes) | {"num_key_value_heads": 4, "vocab_size": 1024}
    tokens = settings.size(4096, 128)
    arguments = {
        "runs_dir": settings.folder / "runs",
        "run_name": name,
        "model.from_config": json.dumps(model),
        "model.lr": "1e-3",
        "model.attention": "LRSA",
        "model.attention.lag_size": tokens // 8,
        "data.source": "demo",
        "data.cache_dir": settings.folder / "cache",
        "data.seq_len": tokens,
        "data.extend": "false",
        "data.global_batch_size": 2 * settings.devices,
        "data.micro_batch_size": "1",
        "data.num_workers": "0",
        "trainer.max_steps": settings.size(20, 5),
        "trainer.accelerator": "npu",
        "trainer.devices": "1",
        "trainer.strategy": "npu_single",
        "trainer.enable_model_summary": "false",
        "trainer.logger": '[{"class_path": "lrsa_lightning.callbacks.MetricsFile"}]',
        "trainer.callbacks": "[]",
        # Sums in a fixed order where an operator supports it, a warning where it does not.
        "trainer.precision": "32-true",
        "trainer.deterministic": "warn",
        **options,
    }
    fit = [sys.executable, "-m", "lrsa_lightning.cli", "fit"]
    return fit + [f"--{key}={value}" for key, value in arguments.items()]


def _fit(settings: Settings, name: str, options: dict[str, str], **environment: str) -> Path:
    command = _command(settings, name, options)
    done = subprocess.run(command, env=_environment() | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed("\n".join(["lrsa fit failed:", *done.stderr.splitlines()[-5:]]))
    return settings.folder / "runs" / name


def _environment() -> dict[str, str]:
    fixed = {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1", "HCCL_DETERMINISTIC": "true", "WANDB_MODE": "disabled"}
    return os.environ | fixed


def _curve(run: Path, metric: str = "train/loss") -> dict[int, float]:
    return dict(zip(*points(read_rows(run / METRICS), metric), strict=True))
