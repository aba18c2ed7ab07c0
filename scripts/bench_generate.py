"""Times prefill and decoding, ours against transformers', and prints Markdown tables.

Rows: transformers' `generate` with DynamicCache and with StaticCache (for which it compiles decoding), then ours with
full attention and with LRSA. A model with random weights, in bfloat16, reads prompts of random tokens.
"ms a token" is the mean over the measured steps, each one new token for every row of the batch. Where the profiler
runs, "GPU kernels" is the time in a step with a kernel running, "ratio" the step's time to it, and "read rate" what
attention reads of keys and values in a second, against a copy's bytes on the same device. "cache" is what is held at
the end. Further tables: the longest prompt that fits the device, and one layer's attention over a complete prompt.
Usage: python scripts/bench_generate.py [--lengths 32768] [--batches 1 8 32] [--rows "LRSA|Static"] [--json out.json]
"""

import argparse
import gc
import json
import os
import re
import shlex
import sys
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import torch
from bench.decoding import Row, Settings, systems
from bench.decoding_table import print_decoding, print_layers, print_longest
from bench.inputs import config_keys
from bench.longest import LongestContext
from bench.options import add_model_options, add_row_options
from bench.prefill import LayerPrefill
from bench.processes import Failed, results

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.ranges import NonNegativeInt, PositiveFiniteFloat, PositiveInt
from lrsa_lightning.versions import versions

AnyRow: TypeAlias = Row | LongestContext | LayerPrefill


def work(settings: Settings, row: AnyRow) -> dict[str, Any]:
    """One row, in the process that measures it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    try:
        return {"card": card, **row.run(settings, device)}
    finally:
        gc.collect()  # compiled code and the model hold each other


def rows_of(options: argparse.Namespace) -> list[AnyRow]:
    """The rows that are requested; those with the same prompts follow each other."""
    all_systems = systems(options.ratios, options.lag)
    sizes = product(options.lengths, options.batches, all_systems)
    rows: list[AnyRow] = [Row(system, length, batch) for length, batch, system in sizes]
    if options.longest == "yes":
        rows += [LongestContext(system) for system in all_systems]
    rows += [LayerPrefill(length, tuple(options.ratios), options.lag) for length in options.lengths]
    return [row for row in rows if re.search(options.rows, row.name)]


def measure(rows: list[AnyRow], settings: Settings, timeout_s: float, report) -> list[dict[str, Any]]:
    """All rows, each a mapping with its name and its figures, or why it has none; reports after each."""
    found: list[dict[str, Any]] = []
    one_gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    for row, result in results(partial(work, settings), rows, timeout_s, environment=one_gpu):
        measured = {"failed": str(result)} if isinstance(result, Failed) else result[0]
        sizes = {"system": row.system.name, "length": row.length, "batch": row.batch} if isinstance(row, Row) else {}
        found.append({"row": row.name, **sizes, **measured})
        print(f"{row.name}: {_said(measured)}", flush=True)
        report(found)
    return found


def _said(measured: dict[str, Any]) -> str:
    if "mean_ms" in measured:
        return f"{measured['mean_ms']:.2f} ms a token"
    return measured.get("failed") or f"{measured.get('longest_tokens', '')} done"


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[32768], help="tokens of a prompt")
    parser.add_argument("--batches", type=PositiveInt, nargs="+", default=[1, 8, 32], help="prompts at a time")
    add_model_options(parser)
    parser.add_argument("--warmup", type=PositiveInt, default=8, help="new tokens before the measured ones")
    parser.add_argument("--new-tokens", type=PositiveInt, default=64, help="measured new tokens")
    parser.add_argument("--profiled-tokens", type=NonNegativeInt, default=4, help="under the profiler (GPU)")
    parser.add_argument(
        "--prefill-tokens", type=PositiveInt, default=2**18, help="prompt tokens of all rows that one pass may take"
    )
    parser.add_argument("--longest", choices=["yes", "no"], default="yes", help="find the longest context that fits")
    parser.add_argument("--memory", type=PositiveFiniteFloat, help="GiB for the longest context; default: all free")
    add_row_options(parser)
    options = parser.parse_args(args)
    try:
        options.keys = config_keys(options.model, max(options.lengths))
    except ValueError as error:
        parser.error(f"--model: {error}")
    return options


@report_input_errors
def main(args: list[str] | None = None) -> None:
    options = parse(args)
    header = {"command": shlex.join(sys.argv), "versions": versions()}
    print(f"{header['command']}\n{', '.join(f'{name} {number}' for name, number in header['versions'].items())}")

    def report(found: list[dict[str, Any]]) -> None:
        if options.json is not None:
            options.json.write_text(json.dumps({**header, "rows": found}, indent=1), encoding="utf-8")

    steps = options.warmup, options.new_tokens, options.profiled_tokens
    memory = None if options.memory is None else int(options.memory * 2**30)
    settings = Settings(options.keys, *steps, options.prefill_tokens, memory)
    found = measure(rows_of(options), settings, options.row_timeout, report)
    for print_table in (print_decoding, print_longest, print_layers):
        print_table(found)


if __name__ == "__main__":
    main()
