"""Times a RULER evaluation on a CUDA GPU: a model of Qwen2.5-1.5B's shape with random weights, bf16.

It needs no files: the tokenizer is the demo's. Random weights seldom end an answer, so each answer takes all of its new
tokens: the slowest case. By default the task is niah_single_1, and a table gives samples per second and the time of
each part. --slice N measures N samples of each task, length and budget instead, on made-up essays and questions. It
extrapolates to --num_samples: prefill and rating by the samples, decoding by the batches. A decoding step of
a full batch takes a little longer than one of a small slice.
Usage: python scripts/bench_ruler.py [--lengths 4096 32768] [--num_samples 32] [--batch_sizes 8 32] [--pieces 4096]
       python scripts/bench_ruler.py --slice 8 --num_samples 100 --lengths 4096 8192 16384 32768
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from random import Random

import torch
from bench.prefill import shape
from bench_attention import print_versions
from transformers import AutoModelForCausalLM

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.data.demo import make_demo_data
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.ranges import PositiveInt
from lrsa_lightning.ruler import make_samples
from lrsa_lightning.ruler.evaluator import RulerEvaluator
from lrsa_lightning.ruler.ranks import Ranks
from lrsa_lightning.ruler.samples import SampleSettings
from lrsa_lightning.ruler.sources import Sources
from lrsa_lightning.ruler.store import SampleStore
from lrsa_lightning.ruler.task_generator import coded_words
from lrsa_lightning.ruler.tasks import TASKS

TASK = "niah_single_1"
BUDGETS = (1.0, 0.5, 0.25)


def demo_tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(Path(folder))
        return load_tokenizer(str(Path(folder) / "tokenizer"), "demo")


def report(model, tokenizer, length: int, num_samples: int, batch_size: int, piece: int) -> None:
    """Prints one line for each budget."""
    samples = {(TASK, length): make_samples(TASK, tokenizer, length, num_samples)}
    for budget in BUDGETS:
        # The first batch compiles the kernels of a shape.
        first = {(TASK, length): samples[TASK, length][:batch_size]}
        sizes = {"batch_size": batch_size, "prefill_chunk_size": piece}
        list(RulerEvaluator(tokenizer, first, [budget], **sizes).evaluate(model))
        torch.cuda.reset_peak_memory_stats()
        evaluator = RulerEvaluator(tokenizer, samples, [budget], **sizes)
        started = time.perf_counter()
        list(evaluator.evaluate(model))
        seconds, parts = time.perf_counter() - started, evaluator.stopwatch.seconds
        measured = sum(parts.values())
        print(
            f"| {length} | {batch_size} | {piece} | r={budget:g} | {num_samples / measured:.2f} | "
            f"{parts['prefill'] / measured:.0%} | {parts['rating'] / measured:.0%} | "
            f"{parts['decoding'] / measured:.0%} | {seconds:.1f} | "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} |",
            flush=True,
        )


def stand_ins(folder: Path) -> Sources:
    """Files in the formats of the sources, of made-up words: prompts of all tasks that fill their lengths."""
    rng = Random(0)
    words = coded_words(rng, 2000, 6)

    def paragraph(number: int) -> str:
        return " ".join(rng.choices(words, k=number)) + "."

    articles = [
        {"title": f"{i}", "paragraphs": [_squad_paragraph(paragraph(80), words[10 * i + p]) for p in range(10)]}
        for i in range(20)
    ]
    hops = [{"question": f"Which is {word}?", "answer": word, "context": _titled(paragraph)} for word in words[:100]]
    contents = {
        "essays": {"text": " ".join(paragraph(20) for _ in range(5000))},
        "squad": {"version": "v2.0", "data": articles},
        "hotpotqa": hops,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return Sources(**{name: folder / f"{name}.json" for name in contents})


def _squad_paragraph(context: str, answer: str) -> dict:
    question = {"question": f"Which word is {answer}?", "is_impossible": False, "answers": [{"text": answer}]}
    return {"context": context, "qas": [question]}


def _titled(paragraph: Callable[[int], str]) -> list[list]:
    return [[paragraph(2), [paragraph(10), paragraph(10)]] for _ in range(10)]


def report_slice(model, tokenizer, lengths: list[int], in_slice: int, num_samples: int) -> None:
    """Prints a line for each task, length and budget, and the time of all, measured and extrapolated."""
    with tempfile.TemporaryDirectory() as folder:
        store = SampleStore(Path(folder) / "samples", tokenizer, SampleSettings(sources=stand_ins(Path(folder))))
        started = time.perf_counter()
        samples = store.samples_that_fit(product(TASKS, lengths), in_slice, print, num_workers=os.cpu_count() or 1)
        making = time.perf_counter() - started
    print("\n| task | length | cache | measured s | prefill and rating ms a sample | decoding s a batch | all s |")
    print("|---|---|---|---|---|---|---|")
    measured, extrapolated = 0.0, 0.0
    for (task, length), rows in sorted(samples.items(), key=lambda own: own[0][1]):
        for budget in BUDGETS:
            seconds, all_seconds = _report_cell(model, tokenizer, (task, length), rows, budget, num_samples)
            measured, extrapolated = measured + seconds, extrapolated + all_seconds
    print(f"\nmeasured: {measured:.0f} s for {in_slice} samples of each, made in {making:.0f} s")
    all_making = making * num_samples / in_slice
    print(f"extrapolated: {extrapolated / 60:.1f} min for {num_samples} samples of each, made in {all_making:.0f} s")


def _report_cell(
    model, tokenizer, cell: tuple[str, int], rows: list, budget: float, num_samples: int
) -> tuple[float, float]:
    """Prints one line; seconds of these rows, and of so many samples."""
    # A batch of the first row compiles, and captures, what the length needs.
    list(RulerEvaluator(tokenizer, {cell: rows[:1]}, [budget]).evaluate(model))
    full = RulerEvaluator(tokenizer, {cell: [rows[0]] * num_samples}, [budget], batch_size="auto")
    (batch_size,) = full.batch_sizes(model, Ranks()).values()
    evaluator = RulerEvaluator(tokenizer, {cell: rows}, [budget], batch_size=batch_size)
    started = time.perf_counter()
    num_batches = len(list(evaluator.evaluate(model)))
    seconds, decoding = time.perf_counter() - started, evaluator.stopwatch.seconds["decoding"]
    a_sample, a_batch = (seconds - decoding) / len(rows), decoding / num_batches
    all_seconds = num_samples * a_sample + -(-num_samples // batch_size) * a_batch
    task, length = cell
    print(
        f"| {task} | {length} | r={budget:g} | {seconds:.2f} | {1000 * a_sample:.0f} | {a_batch:.2f} of {batch_size} | "
        f"{all_seconds:.1f} |",
        flush=True,
    )
    return seconds, all_seconds


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[4096, 32768])
    parser.add_argument("--num_samples", type=PositiveInt, default=32)
    parser.add_argument("--batch_sizes", type=PositiveInt, nargs="+", default=[8, 32])
    parser.add_argument("--pieces", type=PositiveInt, nargs="+", default=[4096, 32768], help="prompt tokens a pass")
    parser.add_argument("--slice", type=PositiveInt, help="samples of each task, length and budget to measure")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU")
    print_versions()
    tokenizer = demo_tokenizer()
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape(max(options.lengths)), dtype=torch.bfloat16).eval()
    if options.slice is not None:
        report_slice(model, tokenizer, options.lengths, options.slice, options.num_samples)
        return
    print("\n| length | batch | piece | cache | samples/s | prefill | rating | decoding | s in all | peak GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        pieces = [piece for piece in options.pieces if piece <= length]
        for batch_size, piece in product(options.batch_sizes, pieces):
            report(model, tokenizer, length, options.num_samples, batch_size, piece)


if __name__ == "__main__":
    main()
