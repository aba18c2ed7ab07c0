"""Checks NPUs, CANN, torch_npu and this package together; exits non-zero when an item fails.

Items: versions, kernels against float32 on the CPU, LRSA against its specification, HCCL, training on one and several
devices, ZeRO, kill and resume. The check sets TORCH_NPU_FALLBACK_CPU_DISABLE=1: an operator without a kernel fails.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from lrsa_lightning.files.atomic_text import write_text
from lrsa_lightning.npu.check import device, kernels, runs
from lrsa_lightning.npu.check.settings import Settings
from lrsa_lightning.npu.environment import require_npu

ITEMS: tuple[Callable[[Settings], dict], ...] = (
    device.versions,
    kernels.fused_attention,
    kernels.softmax_statistics,
    kernels.merged_gradients,
    kernels.lrsa_attention,
    kernels.attention_at_length,
    device.fused_layers,
    device.optimizer,
    device.random_numbers,
    runs.collectives,
    runs.steps,
    runs.ddp,
    runs.zero2,
    runs.zero3,
    runs.resume,
    runs.task_queue,
)


def run(item: Callable[[Settings], dict], settings: Settings) -> dict:
    """The result of an item, printed too. Any exception is a failure, and the next item still runs."""
    start, numbers, message = perf_counter(), {}, None
    try:
        numbers = item(settings)
    except Exception as error:
        traceback.print_exc()
        message = str(error)
    passed, seconds = message is None, perf_counter() - start
    print(f"{'pass' if passed else 'FAIL'}  {item.__name__:20}{seconds:8.1f} s  {message or ''}")
    return {"item": item.__name__, "passed": passed, "seconds": seconds, "numbers": numbers, "error": message}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lrsa_lightning.npu.check", description=__doc__)
    parser.add_argument("--devices", type=int, default=1, help="number of NPUs; HCCL, DDP and ZeRO need several")
    parser.add_argument("--out", type=Path, default=Path("npu_check.json"), help="file of the results")
    parser.add_argument("--only", nargs="+", choices=[i.__name__ for i in ITEMS], help="run these items only")
    parser.add_argument("--small", action="store_true", help="sizes for a machine without hardware")
    options = parser.parse_args(arguments)
    os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
    require_npu()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(options.devices, Path(folder), options.small)
        for item in ITEMS:
            if options.only is None or item.__name__ in options.only:
                results.append(run(item, settings))
                write_text(options.out, json.dumps({"small": options.small, "items": results}, indent=2))
    return int(not all(result["passed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
