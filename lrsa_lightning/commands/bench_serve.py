"""`lrsa bench-serve`: what compression gains in vLLM on this machine."""

import json
import os
from argparse import Namespace
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import AtLeastTwo, PositiveFiniteFloat, PositiveInt, PositiveUnitInterval

_DESCRIPTION = """Compares vLLM's full attention with the folder's rule, in the same memory for keys and values.

All engines run at once, each in a process of its own, and take turns with random prompts: one request alone, then many
at once. Printed: requests/s, seconds to the first token, milliseconds a token, how many requests run before vLLM first
preempts one, and the CPU time of other programs. Engines hold the model once each.
Example: lrsa bench-serve FOLDER --retention_ratios 0.5 0.25 --requests 32 --output bench.json
"""
_LAGS = 8


def make_parser() -> ScriptParser:
    parser = ScriptParser(_DESCRIPTION, prog="lrsa bench-serve")
    given = "runs/NAME, a checkpoint of it, or a Hugging Face folder that names a rule"
    parser.add_argument("source", metavar="MODEL_OR_RUN", help=given)
    parser.add_argument(
        "--retention_ratios", type=PositiveUnitInterval, nargs="+", help="to compare; default: the folder's"
    )
    parser.add_argument("--prompt_tokens", type=PositiveInt, help=f"of a request; default: the sink and {_LAGS} lags")
    parser.add_argument("--new_tokens", type=AtLeastTwo, default=128, help="of an answer")
    parser.add_argument("--requests", type=PositiveInt, default=32, help="that come at once")
    parser.add_argument("--rounds", type=PositiveInt, default=3, help="of turns")
    parser.add_argument(
        "--dense_requests",
        type=PositiveFiniteFloat,
        default=8.0,
        help="complete requests that fit with full attention: the memory for keys and values of each engine",
    )
    parser.add_argument("--kv_cache_gib", type=PositiveFiniteFloat, help="that memory, instead")
    parser.add_argument("--engine", type=_mapping, default={}, metavar="JSON", help="arguments of vLLM's engines")
    parser.add_argument("--output", type=Path, default=Path("bench_serve.json"), help="file for all figures")
    return parser


def _mapping(text: str) -> dict:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return found


@report_input_errors
def run(args: list[str] | None = None) -> None:
    """Measures, prints the table and writes the file.

    Raises:
        InputError: vLLM is not there, or the model or an option does not fit.
    """
    options = make_parser().parse_args(args)
    if not options.output.absolute().parent.is_dir():
        raise InputError(f"--output {options.output}: its folder does not exist")
    from lrsa_lightning.serving.installed_vllm import InstalledVLLM

    vllm = InstalledVLLM.find()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    bench = _benchmark(options, vllm.device_type)
    from lrsa_lightning.serving.bench.table import table
    from lrsa_lightning.serving.bench.turns import measured

    found = measured(bench.engines(vllm.device_type), bench.load, options.rounds)
    facts = {"vllm": vllm.version, "cores": os.cpu_count(), "kv_cache_bytes": bench.cache_bytes, **vars(bench.load)}
    options.output.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(found['summary'], bench.load.requests)}\n\nall figures: {options.output}")


def _benchmark(options: Namespace, device_type: str):
    from lrsa_lightning.serving.bench.load import Benchmark, Load, request_bytes
    from lrsa_lightning.serving.served_model import ServedModel

    model = ServedModel.of(options.source)
    mode = model.mode
    ratios = options.retention_ratios or ([mode.retention_ratio] if mode else [])
    prompt = options.prompt_tokens or (mode.sink_size + _LAGS * mode.lag_size if mode else 1)
    load = Load(prompt, options.new_tokens, options.requests)
    element = 4 if options.engine.get("dtype") == "float32" else 2
    size = request_bytes(model, load, element) * options.dense_requests
    size = options.kv_cache_gib * 2**30 if options.kv_cache_gib else size
    bench = Benchmark(model, tuple(ratios), load, int(size), options.engine)
    bench.check(device_type)
    return bench
