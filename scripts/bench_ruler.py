"""Times a RULER evaluation on a CUDA GPU: a model of Qwen2.5-1.5B's shape with random weights, bf16.

It needs no files: the tokenizer is the demo's, the task niah_single_1. Random weights seldom end an answer, so each
answer takes all of its 128 new tokens: the slowest case. It prints samples per second and the time of each part.
Usage: python scripts/bench_ruler.py [--lengths 4096 32768] [--num_samples 32] [--batch_sizes 8 32] [--pieces 4096]
"""

import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from bench_attention import print_versions
from bench_generate import shape
from transformers import AutoModelForCausalLM

from lrsa_lightning.command_line import ScriptParser
from lrsa_lightning.data.demo import make_demo_data
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.input_boundary import report_input_errors
from lrsa_lightning.ranges import PositiveInt
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator

TASK = "niah_single_1"


def demo_tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(Path(folder))
        return load_tokenizer(str(Path(folder) / "tokenizer"), "demo")


def report(model, tokenizer, length: int, num_samples: int, batch_size: int, piece: int) -> None:
    """Prints one line for each budget."""
    samples = {(TASK, length): make_samples(TASK, tokenizer, length, num_samples)}
    for budget in (1.0, 0.5, 0.25):
        # The first batch compiles the kernels of a shape.
        first = {(TASK, length): samples[TASK, length][:batch_size]}
        sizes = {"batch_size": batch_size, "prefill_chunk_size": piece}
        list(RulerEvaluator(tokenizer, first, [budget], **sizes).evaluate(model))
        torch.cuda.reset_peak_memory_stats()
        evaluator = RulerEvaluator(tokenizer, samples, [budget], **sizes)
        started = time.perf_counter()
        list(evaluator.evaluate(model))
        seconds, parts = time.perf_counter() - started, evaluator.stopwatch.seconds
        generating = parts["prefill"] + parts["decoding"]
        print(
            f"| {length} | {batch_size} | {piece} | r={budget:g} | {num_samples / generating:.2f} | "
            f"{parts['prefill'] / generating:.0%} | {parts['decoding'] / generating:.0%} | "
            f"{num_samples / parts['teacher forcing']:.2f} | {seconds:.1f} | "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} |",
            flush=True,
        )


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[4096, 32768])
    parser.add_argument("--num_samples", type=PositiveInt, default=32)
    parser.add_argument("--batch_sizes", type=PositiveInt, nargs="+", default=[8, 32])
    parser.add_argument("--pieces", type=PositiveInt, nargs="+", default=[4096, 32768], help="prompt tokens a pass")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    print_versions()
    tokenizer = demo_tokenizer()
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape(max(options.lengths)), dtype=torch.bfloat16).eval()
    print(
        "\n| length | batch | piece | cache | samples/s | prefill | decoding | teacher-forced/s | s in all | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        pieces = [piece for piece in options.pieces if piece <= length]
        for batch_size, piece in product(options.batch_sizes, pieces):
            report(model, tokenizer, length, options.num_samples, batch_size, piece)


if __name__ == "__main__":
    main()
