"""Times complete training steps on one device, and prints a Markdown table.

Rows: transformers' Trainer with and without Liger's kernels (sdpa, gradient checkpointing, bfloat16 weights), then
`lrsa fit` with full attention (sdpa and FlashAttention-4) and with LRSA. Our rows run in the default configuration with
its default callbacks, but without RulerEval and W&B. Options that this command does not know go to `lrsa fit`, for all
our rows: --trainer.precision bf16-true, --model.recompute none and so on.
A model with random weights trains on rows of random tokens; what is before the labels is context. Times are medians of
the measured steps. "MFU" counts the model's operations against the matrix rate that this run measures, "dense MFU"
those of full causal attention. "GPU idle" is the share without a kernel of the time between the first and the last
kernel of the profiled steps.
Usage: python scripts/bench_step.py [--length 32768] [--rows "Liger|LRSA"] [--profile 15] [--json step.json]
"""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from bench.clock import matrix_rate
from bench.inputs import Inputs, config_keys
from bench.options import add_model_options, add_row_options
from bench.processes import Failed, results
from bench.runs import Row, Settings, step_rows
from bench.table import print_profile, print_table

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.flops import DecoderFlops
from lrsa_lightning.ranges import NonNegativeInt, PositiveInt
from lrsa_lightning.versions import versions


def work(settings: Settings, row: Row) -> dict[str, Any]:
    """One row, in the process that measures it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (reason := row.left_out()) is not None:
        return {"failed": reason}
    settings.inputs.write(device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rate = matrix_rate(device)
    return {"card": card, "matrix_tflops": rate / 1e12, **row.run(settings, device)}


def figures_of(row: Row, settings: Settings, measured: dict[str, Any], rate_tflops: float) -> dict[str, Any]:
    """What follows from the time of a step."""
    from transformers import AutoConfig

    inputs, seconds = settings.inputs, measured["median_ms"] / 1000
    decoder = DecoderFlops.of(AutoConfig.from_pretrained(inputs.model, trust_remote_code=False))
    rows = settings.global_batch
    flops = decoder.training({inputs.length: rows}, rows * inputs.labels, row.mode)
    return {
        "ms_a_micro_batch": measured["median_ms"] * settings.micro_batch / settings.global_batch,
        "tokens_per_second": rows * inputs.length / seconds,
        "mfu": flops.real / seconds / rate_tflops / 1e12,
        "mfu_dense": flops.dense / seconds / rate_tflops / 1e12,
    }


def measure(rows: list[Row], settings: Settings, timeout_s: float, report) -> list[dict[str, Any]]:
    """All rows, each a mapping with its name and its figures, or why it has none; reports after each.

    Liger's kernels replace functions of transformers, so the peer's rows have processes of their own.
    """
    found: list[dict[str, Any]] = []
    # Trainer would use all GPUs.
    one_gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    for _, group in groupby(enumerate(rows), key=lambda pair: pair[0] if pair[1].peer else -1):
        for row, result in results(partial(work, settings), [row for _, row in group], timeout_s, environment=one_gpu):
            measured = {"failed": str(result)} if isinstance(result, Failed) else result[0]
            if "failed" not in measured:
                rate = next((other["matrix_tflops"] for other in found if "matrix_tflops" in other), None)
                measured |= figures_of(row, settings, measured, rate or measured["matrix_tflops"])
            found.append({"row": row.name, **measured})
            said = measured["failed"] if "failed" in measured else f"{measured['median_ms']:.1f} ms"
            print(f"{row.name}: {said}", flush=True)
            report(found)
    return found


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = ScriptParser(__doc__)
    parser.add_argument("--length", type=PositiveInt, default=32768, help="tokens of a row")
    parser.add_argument("--labels", type=PositiveInt, default=512, help="label tokens of a row, its last ones")
    add_model_options(parser)
    parser.add_argument("--global-batch", type=PositiveInt, default=1, help="rows of an optimizer step")
    parser.add_argument("--micro-batch", type=PositiveInt, default=1, help="rows of a forward pass")
    parser.add_argument("--warmup", type=PositiveInt, default=4, help="steps before the measured ones")
    parser.add_argument("--steps", type=PositiveInt, default=10, help="measured steps")
    parser.add_argument("--profiled-steps", type=NonNegativeInt, default=3, help="steps under the profiler (GPU)")
    parser.add_argument("--profile", type=NonNegativeInt, default=0, help="kernels to list for each row, the longest")
    add_row_options(parser)
    options, passed = parser.parse_known_args(args)
    if not 2 <= options.labels < options.length:
        parser.error(
            f"--labels is {options.labels}, but must be from 2 to {options.length - 1}, one less than --length"
        )
    if options.global_batch % options.micro_batch:
        parser.error(f"--global-batch {options.global_batch} is not a multiple of --micro-batch {options.micro_batch}")
    try:
        options.keys = config_keys(options.model, options.length)
    except ValueError as error:
        parser.error(f"--model: {error}")
    return options, passed


def settings_of(options: argparse.Namespace, passed: list[str], folder: Path) -> Settings:
    total = options.warmup + options.steps + options.profiled_steps
    # One step more than is run, so that no epoch and no run ends in a measured step.
    inputs = Inputs(folder, options.keys, options.length, options.labels, options.global_batch * (total + 1))
    steps = (options.warmup, options.steps, options.profiled_steps)
    return Settings(inputs, options.global_batch, options.micro_batch, *steps, tuple(passed))


@report_input_errors
def main(args: list[str] | None = None) -> None:
    options, passed = parse(args)
    header = {"command": shlex.join(sys.argv), "versions": versions()}
    print(f"{header['command']}\n{', '.join(f'{name} {number}' for name, number in header['versions'].items())}")

    def report(found: list[dict[str, Any]]) -> None:
        if options.json is not None:
            options.json.write_text(json.dumps({**header, "rows": found}, indent=1), encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(options, passed, Path(folder))
        rows = [row for row in step_rows(options.ratios, options.lag) if re.search(options.rows, row.name)]
        found = measure(rows, settings, options.row_timeout, report)
    print_table(found, options.global_batch > options.micro_batch)
    if options.profile:
        print_profile(found, options.profile)


if __name__ == "__main__":
    main()
